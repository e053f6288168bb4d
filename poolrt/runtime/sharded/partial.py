"""The gradient of a sharded parameter while autograd is still adding it up: cards that gave nothing yet have no piece.

    from piece 0's node   [g0, -]  --.
                                      +-->  [g0, g1]  -->  hooks, .grad
    from piece 1's node   [-, g1]  --'

So each piece can hang on its parameter by a node of its own, and adding their gradients up copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor, refuse_addresses


class PartialGradient(Sharded):
    """A gradient of the whole, of which some cards have their part."""

    _parts: list[Tensor | None]
    _sharding: Sharding

    @staticmethod
    def __new__(
        cls: type[PartialGradient], parts: Sequence[Tensor | None], sharding: Sharding, strides: Sequence[int]
    ) -> PartialGradient:
        """The gradient with these parts, one per card, of which at least one is there."""
        known = next(part for part in parts if part is not None)
        made = torch.Tensor._make_wrapper_subclass(
            cls, sharding.shape, strides=strides, dtype=known.dtype, device=sharding.lead
        )
        refuse_addresses(made)
        made._parts, made._sharding = list(parts), sharding
        return made

    def __init__(self, *args: Any) -> None:
        """All is said in __new__."""

    @property
    def sharding(self) -> Sharding:
        """Where the parts lie."""
        return self._sharding

    def plus(self, other: PartialGradient) -> PartialGradient:
        """The sum of two gradients of one parameter."""
        both = zip(self._parts, other._parts, strict=True)
        parts = [a if b is None else b if a is None else a + b for a, b in both]
        return PartialGradient(parts, self._sharding, self.stride())

    def completed(self) -> ShardedTensor:
        """The gradient with a piece for every card: zeros where none came, and replicas added up."""
        sharding = self._sharding
        pieces = [
            torch.zeros(sharding.piece_shape(card), dtype=self.dtype, device=sharding.devices[card])
            if part is None
            else part
            for card, part in enumerate(self._parts)
        ]
        return ShardedTensor(add_replicas(pieces, sharding), sharding, self.stride())

    def whole(self, device: torch.device | str | None = None) -> Tensor:
        """The values in a new plain tensor."""
        return self.completed().whole(device)

    def become(self, completed: ShardedTensor) -> None:
        """Have these values instead."""
        self._parts = list(completed.pieces)

    def write(self, whole: Tensor) -> None:
        """Have these values instead."""
        self._parts = list(self._sharding.scatter(whole))


def add_replicas(gradients: list[Tensor], sharding: Sharding) -> list[Tensor]:
    """Where several cards hold the same, every one of them gets the sum of their gradients, added in cards' order."""
    if sharding.split.is_disjoint:
        return gradients
    summed = [gradient.clone() for gradient in gradients]
    dim = sharding.split.dim
    for run in sharding.shared:
        parts = [summed[card].narrow(dim, place, run.length) for card, place in run.holders]
        for part in parts[1:]:
            parts[0].add_(part.to(parts[0].device))
        for part in parts[1:]:
            part.copy_(parts[0])
    return summed
