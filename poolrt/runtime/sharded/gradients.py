"""Gradients of sharded parameters: from the pieces' gradients or from one of the whole, and always in pieces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from poolrt.runtime.sharded.partial import PartialGradient
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor


class IntoPieces:
    """The hook that sees a parameter's gradient first."""

    def __init__(self, sharding: Sharding) -> None:
        self._sharding = sharding  # not the parameter: a hook lives as long as its leaf

    def __call__(self, gradient: Tensor) -> Tensor:
        """`gradient` in pieces."""
        return shard_tensor(gradient, self._sharding)


class GradientOfPiece(torch.autograd.Function):
    """One piece's gradient as one of the whole; itself differentiable, for gradients of gradients."""

    @staticmethod
    def forward(ctx: Any, sharding: Sharding, strides: Sequence[int], card: int, gradient: Tensor) -> Tensor:
        """The whole's gradient so far."""
        ctx.sharding, ctx.card = sharding, card
        parts = [gradient.detach() if place == card else None for place in sharding.cards]
        return PartialGradient(parts, sharding, strides)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """The piece's part."""
        return None, None, None, shard_tensor(gradient, ctx.sharding).pieces[ctx.card]


def put_first(hooks: OrderedDict[int, Any], first: Mapping[int, Any]) -> None:
    """Have `first` called before the hooks there are; torch goes by the order in which a dictionary was filled."""
    others = dict(hooks)
    hooks.clear()
    hooks.update(first)
    hooks.update(others)


def shard_tensor(tensor: Tensor, sharding: Sharding) -> ShardedTensor:
    """A tensor of the parameter's shape as pieces on their cards; one that is so already is not copied."""
    if isinstance(tensor, ShardedTensor) and tensor.sharding == sharding:
        return tensor
    if torch.is_grad_enabled() and tensor.requires_grad:
        return cast(ShardedTensor, _Scatter.apply(tensor, sharding))
    if isinstance(tensor, PartialGradient):
        return tensor.completed()
    whole = tensor.whole() if isinstance(tensor, Sharded) else tensor
    return ShardedTensor(sharding.scatter(whole), sharding, whole.stride())


class _Scatter(torch.autograd.Function):
    """`shard_tensor` of a gradient that is itself to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, sharding: Sharding) -> Tensor:
        """The same in pieces."""
        ctx.in_pieces = isinstance(gradient, Sharded)
        return shard_tensor(gradient.detach(), sharding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The same: in pieces, if it came in pieces."""
        if ctx.in_pieces or not isinstance(gradient, Sharded):
            return gradient, None
        return gradient.whole(), None
