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
    aten.sum.default: torch.sum,
    aten.sum.dim_IntList: torch.sum,
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
    if func is aten.mean.default:
        total = _joined(aten.sum.default, tensor, kwargs, torch.sum)
        return total / tensor.numel()
    if func not in _JOIN:
        return None
    dims, keeps = _filled(rest, (None, False))
    return _joined(func, tensor, kwargs, _JOIN[func]) if not keeps and _all_of(tensor, dims) else None


def _filled(given: list[Any], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*given, *defaults[len(given) :])


def _all_of(tensor: Tensor, dims: Any) -> bool:
    return not dims or len(dims) == tensor.dim()


def _parts(tensor: ShardedTensor) -> list[Tensor]:
    """What each card owns, of the cards that own something."""
    sharding = tensor.sharding
    owned = [sharding.owned_part(piece, card) for card, piece in enumerate(tensor.pieces)]
    return [part for part in owned if part.numel()]


def _joined(func: Any, tensor: ShardedTensor, kwargs: dict[str, Any], join: Callable[[Tensor], Tensor]) -> Tensor:
    total = aten.sum.default if func is aten.sum.dim_IntList else func
    results = [total(part, **kwargs).to(tensor.device) for part in _parts(tensor)]
    return join(torch.stack(results))


def _norm(tensor: ShardedTensor, order: float, dtype: torch.dtype | None) -> Tensor:
    """The norm of the cards' norms, which is the norm of all (order 0 counts, so there it is their sum)."""
    norms = [torch.linalg.vector_norm(part, order, dtype=dtype).to(tensor.device) for part in _parts(tensor)]
    joined = torch.stack(norms)
    return joined.sum() if order == 0 else torch.linalg.vector_norm(joined, order)
