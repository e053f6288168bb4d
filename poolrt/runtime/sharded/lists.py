"""Operators over lists of tensors, with which optimizers step all parameters at once: one call per card.

    _foreach_mul_([a, p, q], 0.9)     plain:  [a]         p and q are sharded, a is not
                                      card 0: [p0, q0]
                                      card 1: [p1, q1]

What stands beside the lists (a learning rate, a scale) goes to every card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.sharded.elementwise import Cutter
from poolrt.runtime.sharded.facts import name_of, written_arguments
from poolrt.runtime.sharded.gathered import run_on_whole
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor

_WHOLE: dict[str, Callable[..., Tensor]] = {
    "_foreach_norm": lambda tensor, order=2, dtype=None: torch.linalg.vector_norm(tensor, order, dtype=dtype),
    "_foreach_max": torch.max,
}
"""operators that reduce every element of the list: as the operator of one tensor"""


def run_over_lists(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` for plain elements together, and for sharded ones card by card."""
    call = _Call(func, args, kwargs)
    results: list[Any] = [None] * call.count
    plain = [index for index in range(call.count) if call.sharding(index) is None]
    if plain:
        _put(results, plain, call.run(plain))
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(call.count):
        sharding = call.sharding(index)
        if sharding is not None and call.goes_by_piece(index, sharding):
            groups[len(sharding.devices)].append(index)
        elif sharding is not None:
            _put(results, [index], call.run_whole(index))
    for cards, indices in groups.items():
        _put(results, indices, call.run_by_card(indices, cards))
    return results if func._schema.returns else None


def _put(results: list[Any], indices: Sequence[int], values: Sequence[Any] | None) -> None:
    for index, value in zip(indices, values or (), strict=False):
        results[index] = value


class _Call:
    """One call, whose lists are taken apart by element."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs
        lists = [value for value in (*args, *kwargs.values()) if _is_tensor_list(value)]
        self.count = len(lists[0])
        self._lists = [values for values in lists if len(values) == self.count]
        self._written = [value for value in written_arguments(func, args, kwargs) if _is_tensor_list(value)]
        self._shardings = [self._sharding_of(index) for index in range(self.count)]

    def _sharding_of(self, index: int) -> Sharding | None:
        for values in self._lists:
            value = values[index]
            if isinstance(value, Sharded):
                return value.sharding
        return None

    def sharding(self, index: int) -> Sharding | None:
        """Of the first sharded tensor at that place of the lists; None if there is none."""
        return self._shardings[index]

    def goes_by_piece(self, index: int, sharding: Sharding) -> bool:
        """Whether every tensor at that place that is written lies as the first one does, and none is reduced."""
        written = [values[index] for values in self._written if index < len(values)]
        fits = all(isinstance(value, ShardedTensor) and value.sharding == sharding for value in written)
        tensors = [values[index] for values in self._lists]
        shapes = {tuple(value.shape) for value in tensors if value.dim() > 0}
        return fits and shapes <= {sharding.shape} and name_of(self._func) not in _WHOLE

    def run(self, indices: Sequence[int]) -> Any:
        """The call with these elements only."""
        return self._run(indices, lambda value, index: value, lambda value: value)

    def run_whole(self, index: int) -> Any:
        """The call for one element, reduced or on gathered tensors."""
        reduce = _WHOLE.get(name_of(self._func))
        if reduce is not None:
            return [reduce(self._args[0][index], *self._args[1:], **self._kwargs)]
        args, kwargs = self._rebuilt([index], lambda value, index: value, lambda value: value)
        return run_on_whole(self._func, args, kwargs)

    def run_by_card(self, indices: Sequence[int], cards: int) -> list[ShardedTensor]:
        """One call per card with the pieces of these elements."""
        cutters = {index: Cutter(self._found(index)) for index in indices}
        pieces: dict[int, list[Tensor]] = defaultdict(list)
        for card in range(cards):
            by_device: dict[torch.device, list[int]] = defaultdict(list)
            for index in indices:
                by_device[self._found(index).devices[card]].append(index)
            for device, together in by_device.items():
                self._run_on_card(together, cutters, card, device, pieces)
        self._mark_changed(indices)
        return [ShardedTensor(pieces[index], self._found(index)) for index in indices if pieces[index]]

    def _run_on_card(
        self,
        indices: Sequence[int],
        cutters: dict[int, Cutter],
        card: int,
        device: torch.device,
        pieces: dict[int, list[Tensor]],
    ) -> None:
        shared: list[tuple[Tensor, Tensor]] = []

        def to_card(value: Tensor) -> Tensor:
            there = value if value.device.type == "cpu" and value.dim() == 0 else value.to(device)
            shared.append((value, there))
            return there

        def part(value: Tensor, index: int) -> Tensor:
            number = value.dim() == 0 and not isinstance(value, Sharded)
            return value.to(device) if number and value.device.type != "cpu" else cutters[index].part(value, card)

        results = self._run(indices, part, to_card)
        for index, result in zip(indices, results or (), strict=False):
            pieces[index].append(result)
        for value, there in shared:  # a flag that any card may raise: found_inf of the gradient scaler
            if value is not there and any(value is written for written in self._other_written()):
                value.copy_(torch.maximum(value, there.to(value.device)))

    def _other_written(self) -> list[Any]:
        return [v for v in written_arguments(self._func, self._args, self._kwargs) if isinstance(v, Tensor)]

    def _found(self, index: int) -> Sharding:
        sharding = self._shardings[index]
        assert sharding is not None
        return sharding

    def _run(
        self, indices: Sequence[int], part: Callable[[Tensor, int], Tensor], other: Callable[[Tensor], Tensor]
    ) -> Any:
        args, kwargs = self._rebuilt(indices, part, other)
        return self._func(*args, **kwargs)

    def _rebuilt(
        self, indices: Sequence[int], part: Callable[[Tensor, int], Tensor], other: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for these elements: `part` gives what of each tensor, `other` what of those in no list."""

        def of(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and len(value) == self.count:
                return [part(value[i], i) if isinstance(value[i], Tensor) else value[i] for i in indices]
            if isinstance(value, Tensor) and value.dim() == 1 and len(value) == self.count:
                return value[list(indices)]  # the numbers of the elements, packed
            return other(value) if isinstance(value, Tensor) else value

        return tuple(map(of, self._args)), {name: of(value) for name, value in self._kwargs.items()}

    def _mark_changed(self, indices: Sequence[int]) -> None:
        for values in self._written:
            for index in indices:
                if index < len(values) and isinstance(values[index], ShardedTensor):
                    values[index].mark_changed()


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, Tensor) for item in value)
