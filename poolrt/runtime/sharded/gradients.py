"""Gradients of sharded parameters: from the pieces' gradients or from one of the whole, and always in pieces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor


class IntoPieces:
    """The hook that sees a parameter's gradient first."""

    def __init__(self, sharding: Sharding) -> None:
        self._sharding = sharding  # not the parameter: a hook lives as long as its leaf

    def __call__(self, gradient: Tensor) -> Tensor:
        """`gradient` in pieces."""
        return shard_tensor(gradient, self._sharding)


class GradientOfPieces(torch.autograd.Function):
    """The pieces' gradients as one sharded gradient; itself differentiable, for gradients of gradients."""

    @staticmethod
    def forward(
        ctx: Any, sharding: Sharding, strides: Sequence[int], forms: Sequence[Any], *gradients: Tensor | None
    ) -> Tensor:
        """The whole gradient; zeros stand for pieces without one."""
        ctx.sharding = sharding
        ctx.needed = [gradient is not None for gradient in gradients]
        filled = [
            gradient.detach() if gradient is not None else torch.zeros(shape, dtype=dtype, device=device)
            for gradient, (shape, dtype, device) in zip(gradients, forms, strict=True)
        ]
        return ShardedTensor(add_replicas(filled, sharding), sharding, strides)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """For each piece its part."""
        parts = shard_tensor(gradient, ctx.sharding).pieces
        return (None, None, None, *(part if needed else None for part, needed in zip(parts, ctx.needed, strict=True)))


def put_first(hooks: OrderedDict[int, Any], first: Mapping[int, Any]) -> None:
    """Have `first` called before the hooks there are; torch goes by the order in which a dictionary was filled."""
    others = dict(hooks)
    hooks.clear()
    hooks.update(first)
    hooks.update(others)


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


def shard_tensor(tensor: Tensor, sharding: Sharding) -> ShardedTensor:
    """A tensor of the parameter's shape as pieces on their cards; one that is so already is not copied."""
    if isinstance(tensor, ShardedTensor) and tensor.sharding == sharding:
        return tensor
    if torch.is_grad_enabled() and tensor.requires_grad:
        return cast(ShardedTensor, _Scatter.apply(tensor, sharding))
    whole = tensor.whole() if isinstance(tensor, Sharded) else tensor
    return ShardedTensor(sharding.scatter(whole), sharding, whole.stride())


class _Scatter(torch.autograd.Function):
    """`shard_tensor` of a gradient that is itself to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, sharding: Sharding) -> Tensor:
        """The same in pieces."""
        return shard_tensor(gradient.detach(), sharding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The same, whole."""
        return (gradient.whole() if isinstance(gradient, Sharded) else gradient), None
