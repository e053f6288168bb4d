"""A linear layer split by its input: each card multiplies its part of the input, the products are added up.

y  =  x_0 W_0  +  x_1 W_1  +  bias          x_c, W_c on card c; the bias once, on the lead card
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.plan import RowLinear
from poolrt.runtime.regions.replica import holder_of, parameter_of
from poolrt.runtime.regions.running.followed import Followed
from poolrt.runtime.regions.running.parted import parts_of
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic
from poolrt.runtime.state.slot import Slot
from poolrt.transfer.collectives.exchange import Exchange

Pieces = Callable[[Tensor], Sequence[Tensor]]


class RowSplitLinear:
    """The forward of a row-split linear layer; GPT-2's Conv1D is one with its weight transposed."""

    def __init__(
        self,
        module: nn.Module,
        rewrite: RowLinear,
        devices: Sequence[torch.device],
        pieces: Pieces,
        traffic: Traffic = UNCOUNTED,
    ) -> None:
        self._module, self._devices, self._split, self._traffic = module, tuple(devices), rewrite.split, traffic
        self._followed = Followed(module, rewrite)
        self._transposed = rewrite.split.dim == 0
        self._held = [holder_of({"weight": piece}) for piece in pieces(parameter_of(module, "weight"))]

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name for it)
        """The layer's output on the lead card.

        Raises:
            ModelError: if its weight or bias was replaced after the split.
        """
        self._followed.follow()
        with self._traffic.exchange(self._devices) as exchange:
            parts, products = self._parts(exchange, input), []
            for card, held in enumerate(self._held):
                exchange.land(card)
                products.append(exchange.leave(card, self._product(parts(card), parameter_of(held, "weight"))))
            total = exchange.join(products)
        bias = self._module._parameters.get("bias")
        return total if bias is None else total + bias

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read."""
        return [Slot(held, "weight", card) for card, held in enumerate(self._held)]

    def _parts(self, exchange: Exchange, tensor: Tensor) -> Callable[[int], Tensor]:
        """What a card reads, once it has landed."""
        parts = parts_of(tensor, self._split.piece_sizes) if in_one_run(self._split) else None
        if parts is not None:
            return parts.__getitem__
        copies = exchange.fork(tensor)
        return lambda card: taken(copies[card], self._split, card)

    def _product(self, part: Tensor, weight: Tensor) -> Tensor:
        return F.linear(part, weight.t() if self._transposed else weight)


def in_one_run(split: Split) -> bool:
    """Whether the cards hold one range each, one after another: then parts in order of the cards are the whole."""
    return split == Split.from_counts(split.piece_sizes, split.dim)


def taken(tensor: Tensor, split: Split, card: int) -> Tensor:
    """What `card` reads of the last dimension of `tensor`."""
    runs = [tensor[..., start:stop] for start, stop in split.pieces[card]]
    return runs[0] if len(runs) == 1 else torch.cat(runs, -1)
