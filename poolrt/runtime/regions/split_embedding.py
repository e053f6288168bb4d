"""An embedding whose rows lie on several cards: each looks up its own ids, everything else counts as zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.place import Slot
from poolrt.runtime.regions.fork_join import join
from poolrt.runtime.regions.plan import SplitEmbedding
from poolrt.runtime.regions.replica import holder_of, parameter_of

Pieces = Callable[[Tensor], Sequence[Tensor]]


class RowSplitEmbedding:
    """The forward of an embedding split by rows, one range per card.

    What a class derived from nn.Embedding does to the rows that were looked up (a scale, say) is done to the sum.
    """

    def __init__(
        self, module: nn.Embedding, rewrite: SplitEmbedding, devices: Sequence[torch.device], pieces: Pieces
    ) -> None:
        self._module, self._devices = module, tuple(devices)
        self._starts = [ranges[0][0] for ranges in rewrite.split.pieces]
        self._held = [holder_of({"weight": piece}) for piece in pieces(parameter_of(module, "weight"))]

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name for it)
        """The rows of the ids, on the lead card.

        Raises:
            IndexError: if an id is no row; on a GPU the device's own assertion comes later.
        """
        self._check(input)
        return join([self._rows(input, card) for card in range(len(self._devices))], self._devices[0])

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read."""
        return [Slot(held, "weight", card) for card, held in enumerate(self._held)]

    def _rows(self, ids: Tensor, card: int) -> Tensor:
        weight, start = parameter_of(self._held[card], "weight"), self._starts[card]
        ids = ids.to(self._devices[card]) - start
        mine = (ids >= 0) & (ids < len(weight))
        padding = self._module.padding_idx
        padding = padding - start if padding is not None and start <= padding < start + len(weight) else None
        rows = F.embedding(torch.where(mine, ids, 0), weight, padding)
        # A row that stands in for another card's id must not even pass a NaN on.
        return torch.where(mine.unsqueeze(-1), rows, 0)

    def _check(self, ids: Tensor) -> None:
        rows = self._module.num_embeddings
        fine = (ids >= 0) & (ids < rows)
        if ids.device.type == "cuda":  # without waiting for the card
            torch._assert_async(fine.all(), f"an id is none of the {rows} rows")
        elif not bool(fine.all()):
            raise IndexError(f"id {int(ids[~fine][0])} is none of the {rows} rows 0 to {rows - 1} of the embedding")
