"""Reductions of the whole to one number: a number per card, then one of those. No card needs the whole.

    norm(p) = sqrt(norm(p0)^2 + norm(p1)^2)        sum(p) = sum(p0) + sum(p1)

What several cards hold is counted on its owner. The numbers are added in the cards' order, so they are the same in
every run; in the last bits they may differ from the order in which one card would add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.sharded.tensor import ShardedTensor

aten = torch.ops.aten

_JOIN: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.max.default: torch.max,
    aten.min.default: torch.min,
    aten.amax.default: torch.amax,
    aten.amin.default: torch.amin,
    aten.any.default: torch.any,
    aten.all.default: torch.all,
}
"""reduction to how the cards' results become one; each is called with all dimensions reduced"""


def run_reduction(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The reduction of the whole; None where `func` is another operator, or keeps dimensions."""
    tensor, *rest = args
    if not isinstance(tensor, ShardedTensor) or tensor.numel() == 0:
        return None
    if func is aten.linalg_vector_norm.default:
        order, dims, keeps = _filled(rest, (2, None, False))
        return _norm(tensor, order, kwargs.get("dtype")) if not keeps and _all_of(tensor, dims) else None
    if func is aten.mean.default and tensor.is_floating_point():
        return _sum(tensor, kwargs.get("dtype"), divisor=tensor.numel())
    if func not in (*_JOIN, aten.sum.default, aten.sum.dim_IntList):
        return None
    dims, keeps = _filled(rest, (None, False))
    if keeps or not _all_of(tensor, dims):
        return None
    return _joined(func, tensor) if func in _JOIN else _sum(tensor, kwargs.get("dtype"))


def _filled(given: list[Any], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*given, *defaults[len(given) :])


def _all_of(tensor: Tensor, dims: Any) -> bool:
    return not dims or len(dims) == tensor.dim()


def _parts(tensor: ShardedTensor) -> list[Tensor]:
    """What each card owns, of the cards that own something."""
    sharding = tensor.sharding
    owned = [sharding.owned_part(piece, card) for card, piece in enumerate(tensor.pieces)]
    return [part for part in owned if part.numel()]


def _joined(func: Any, tensor: ShardedTensor) -> Tensor:
    results = [func(part).to(tensor.device) for part in _parts(tensor)]
    return _JOIN[func](torch.stack(results))


def _sum(tensor: ShardedTensor, dtype: torch.dtype | None, divisor: int = 1) -> Tensor:
    """Rounded once, at the end, as one card would."""
    sums = [part.sum(dtype=dtype or _wide(tensor)).to(tensor.device) for part in _parts(tensor)]
    total = torch.stack(sums).sum()
    total = total if divisor == 1 else total / divisor
    return total.to(dtype or (tensor.dtype if tensor.is_floating_point() else total.dtype))


def _norm(tensor: ShardedTensor, order: float, dtype: torch.dtype | None) -> Tensor:
    """The norm of the cards' norms, which is the norm of all (order 0 counts, so there it is their sum)."""
    wide = dtype or _wide(tensor)
    norms = [torch.linalg.vector_norm(part, order, dtype=wide).to(tensor.device) for part in _parts(tensor)]
    joined = torch.stack(norms)
    total = joined.sum() if order == 0 else torch.linalg.vector_norm(joined, order)
    return total if dtype is not None or tensor.is_complex() else total.to(tensor.dtype)


def _wide(tensor: Tensor) -> torch.dtype | None:
    """The type in which a card's number is kept until all are joined; None for the usual one."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
