"""An embedding whose rows lie on several cards: each looks up its own ids, everything else counts as zero.

ids           3  0  5  2           rows 0..2 on card 0, 3..5 on card 1
card 0        .  0  .  2           each runs the module's own Python on its rows (some scale what they looked up)
card 1        0  .  2  .
sum           one row per id
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from poolrt.runtime.regions.plan import SplitEmbedding
from poolrt.runtime.regions.replica import parameter_of, put_parameters, replicate
from poolrt.runtime.regions.running.followed import Followed
from poolrt.runtime.regions.running.keyed import KeyedCards
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic
from poolrt.runtime.state.slot import Slot

Pieces = Callable[[Tensor], Sequence[Tensor]]


class RowSplitEmbedding:
    """The forward of an embedding split by rows, one range per card."""

    def __init__(
        self,
        module: nn.Embedding,
        rewrite: SplitEmbedding,
        devices: Sequence[torch.device],
        pieces: Pieces,
        traffic: Traffic = UNCOUNTED,
    ) -> None:
        self._module, self._devices, self._traffic = module, tuple(devices), traffic
        self._starts = [ranges[0][0] for ranges in rewrite.split.pieces]
        self._keyed = KeyedCards(module, devices)
        weights = pieces(parameter_of(module, "weight"))
        self._replicas = [self._replica(card, weights[card]) for card in range(len(devices))]
        self._followed = Followed(module, rewrite, self._replicas, devices)

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name for it)
        """The rows of the ids, on the lead card.

        Raises:
            IndexError: if an id is no row; on a GPU the device's own assertion comes later.
            ModelError: if something was changed after the split that the pieces depend on.
        """
        self._followed.follow()
        self._check(input)
        with self._traffic.exchange(self._devices) as exchange:
            ids = exchange.fork(input)

            def on_card(card: int) -> Tensor:
                exchange.land(card)
                return exchange.leave(card, self._rows(ids[card], card))

            return exchange.join(self._keyed.run(on_card))

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read."""
        return [Slot(replica, "weight", card) for card, replica in enumerate(self._replicas)]

    def _replica(self, card: int, weight: Tensor) -> nn.Module:
        replica, start, padding = replicate(self._module), self._starts[card], self._module.padding_idx
        put_parameters(replica, {"weight": weight})
        mine = padding is not None and start <= padding < start + len(weight)
        replica.__dict__["padding_idx"] = padding - start if padding is not None and mine else None
        replica.__dict__["num_embeddings"] = len(weight)
        return replica

    def _rows(self, ids: Tensor, card: int) -> Tensor:
        replica = self._replicas[card]
        ids = ids - self._starts[card]
        mine = (ids >= 0) & (ids < len(parameter_of(replica, "weight")))
        rows = replica(torch.where(mine, ids, 0))
        # A row that stands in for another card's id must not even pass a NaN on.
        return torch.where(mine.unsqueeze(-1), rows, 0)

    def _check(self, ids: Tensor) -> None:
        rows = self._module.num_embeddings
        fine = (ids >= 0) & (ids < rows)
        if ids.device.type == "cuda":  # without waiting for the card
            torch._assert_async(fine.all(), f"an id is none of the {rows} rows")
        elif not bool(fine.all()):
            raise IndexError(f"id {int(ids[~fine][0])} is none of the {rows} rows 0 to {rows - 1} of the embedding")
