"""Operators that work element by element: once per card, on the pieces. The results are the whole's, bit for bit.

    p.addcdiv_(m, v)      card 0: p0.addcdiv_(m0, v0)       card 1: p1.addcdiv_(m1, v1)

A plain tensor among the arguments is cut as the pieces are; one that is broadcast along the split goes to every card.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.sharded.facts import is_elementwise, written_arguments
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor


class Cutter:
    """Gives each card its part of any tensor that goes with tensors of one sharding."""

    def __init__(self, sharding: Sharding, anywhere: bool = False) -> None:
        """`anywhere`: plain tensors may lie on any device, as the source of a copy may."""
        self._sharding = sharding
        self._anywhere = anywhere
        self._wholes: dict[int, Tensor] = {}

    def part(self, value: Any, card: int) -> Any:
        """What `card` works with; values that are no tensors as they are."""
        if not isinstance(value, Tensor):
            return value
        if isinstance(value, ShardedTensor) and value.sharding == self._sharding:
            return value.pieces[card]
        return self._cut(self._plain(value), card)

    def _plain(self, value: Tensor) -> Tensor:
        if isinstance(value, Sharded):
            return self._wholes.setdefault(id(value), value.whole())
        is_number = value.dim() == 0 and value.device.type == "cpu"
        if value.device != self._sharding.lead and not is_number and not self._anywhere:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{self._sharding.lead} and {value.device}!"
            )
        return value

    def _cut(self, value: Tensor, card: int) -> Tensor:
        device = self._sharding.devices[card]
        if value.dim() == 0:
            return value if value.device.type == "cpu" else value.to(device)
        dim = self._sharding.split.dim - len(self._sharding.shape) + value.dim()
        if dim >= 0 and value.shape[dim] != 1:
            value = _along(self._sharding, value, dim, card)
        return value.to(device)


def _along(sharding: Sharding, value: Tensor, dim: int, card: int) -> Tensor:
    parts = [value.narrow(dim, run.start, run.length) for run in sharding.runs[card]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else value.narrow(dim, 0, 0)


def common_sharding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sharding | None:
    """How the result of an operator lies if it can be had piece by piece; None if it cannot."""
    if not is_elementwise(func):
        return None
    written = [value for value in written_arguments(func, args, kwargs) if isinstance(value, Tensor)]
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    leading = next((value for value in (*written, *tensors) if isinstance(value, ShardedTensor)), None)
    if leading is None or not all(_is_sharded_as(leading.sharding, value) for value in written):
        return None
    shapes = {tuple(value.shape) for value in tensors} - {leading.sharding.shape, ()}
    grows = shapes and tuple(torch.broadcast_shapes(leading.shape, *shapes)) != leading.sharding.shape
    return None if grows else leading.sharding


def _is_sharded_as(sharding: Sharding, value: Tensor) -> bool:
    return isinstance(value, ShardedTensor) and value.sharding == sharding


def run_on_pieces(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sharding: Sharding) -> Any:
    """Run `func` once per card; a sharded tensor of the results, or the argument that was written."""
    cutter = Cutter(sharding, anywhere=func is torch.ops.aten.copy_.default)
    results = []
    for card in sharding.cards:
        named = {name: cutter.part(value, card) for name, value in kwargs.items()}
        results.append(func(*(cutter.part(value, card) for value in args), **named))
    written = list(_sharded(written_arguments(func, args, kwargs)))
    for value in written:
        value.mark_changed()
    return written[0] if written else ShardedTensor(results, sharding)


def _sharded(values: Iterator[Any]) -> Iterator[ShardedTensor]:
    yield from (value for value in values if isinstance(value, ShardedTensor))
