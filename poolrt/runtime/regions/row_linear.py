"""A linear layer split by its input: each card multiplies its part of the input, the products are added up.

y  =  x_0 W_0  +  x_1 W_1  +  bias          x_c, W_c on card c; the bias once, on the lead card
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime.place import Slot
from poolrt.runtime.regions.fork_join import fork, join
from poolrt.runtime.regions.parted import parts_of
from poolrt.runtime.regions.plan import RowLinear
from poolrt.runtime.regions.replica import holder_of, parameter_of

Pieces = Callable[[Tensor], Sequence[Tensor]]


class RowSplitLinear:
    """The forward of a row-split linear layer; GPT-2's Conv1D is one with its weight transposed."""

    def __init__(self, module: nn.Module, rewrite: RowLinear, devices: Sequence[torch.device], pieces: Pieces) -> None:
        self._module, self._devices, self._split = module, tuple(devices), rewrite.split
        self._transposed = rewrite.split.dim == 0
        self._held = [holder_of({"weight": piece}) for piece in pieces(parameter_of(module, "weight"))]

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name for it)
        """The layer's output on the lead card."""
        parts = self._parts(input)
        products = [
            F.linear(part, weight.t() if self._transposed else weight)
            for part, weight in zip(parts, (parameter_of(held, "weight") for held in self._held), strict=True)
        ]
        total, bias = join(products, self._devices[0]), self._module._parameters.get("bias")
        return total if bias is None else total + bias

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read."""
        return [Slot(held, "weight", card) for card, held in enumerate(self._held)]

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        parts = parts_of(tensor, self._split.piece_sizes) if in_one_run(self._split) else None
        if parts is not None:
            return parts
        copies = fork(tensor, self._devices)
        return [taken(copy, self._split, card) for card, copy in enumerate(copies)]


def in_one_run(split: Split) -> bool:
    """Whether the cards hold one range each, one after another: then parts in order of the cards are the whole."""
    return split == Split.from_counts(split.piece_sizes, split.dim)


def taken(tensor: Tensor, split: Split, card: int) -> Tensor:
    """What `card` reads of the last dimension of `tensor`."""
    runs = [tensor[..., start:stop] for start, stop in split.pieces[card]]
    return runs[0] if len(runs) == 1 else torch.cat(runs, -1)
