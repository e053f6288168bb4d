"""Tensors inside nested values: what a model takes and returns.

    {"loss": t0, "cache": Cache(layers=[Layer(keys=t1)])}
        ->  [Leaf("loss", t0), Leaf("cache.layers.0.keys", t1)] and a way back

Tuples, lists, dicts, named tuples and dataclasses (transformers' ModelOutput among them) are containers. Other objects
that hold tensors (key-value caches) are state: walked only where asked, because a model may change them in place and
must then be given the very object. Everything else is a constant: it goes through as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from poolrt.runtime.state.paths import joined

Rebuild = Callable[[Iterator[Tensor]], Any]


class InParts(Protocol):
    """An object that shows itself as one and is several: looked into as those, so that nothing is made whole."""

    def apart(self) -> tuple[Any, ...]:
        """What it is made of."""

    def together(self, parts: tuple[Any, ...]) -> Any:
        """Another such object, of these."""


_CONSTANTS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.Size,
    slice,
)
_PLAIN_CONSTANTS = frozenset(_CONSTANTS)
_NEVER_WALKED = (*_CONSTANTS, nn.Module, type, torch.Generator, torch.storage.UntypedStorage, torch.utils.data.Dataset)


@dataclass(frozen=True)
class Leaf:
    """One tensor and where it stands in the value."""

    path: str
    tensor: Tensor
    in_state: bool = False
    """inside an object that is no plain container"""


@dataclass(frozen=True)
class Tree:
    """A value taken apart: its tensors in order, and how to put others in their places."""

    leaves: tuple[Leaf, ...]
    rebuild_from: Rebuild
    has_state: bool
    """whether an object was met that is neither container nor constant: a cache, say"""
    constants: tuple[tuple[str, Any], ...] = ()
    """(path, value) of what is no tensor"""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors alone."""
        return [leaf.tensor for leaf in self.leaves]

    def rebuild(self, tensors: Iterable[Tensor]) -> Any:
        """The value with `tensors` in place of its own, in the same order."""
        return self.rebuild_from(iter(tensors))

    def difference(self, other: Tree) -> str | None:
        """The first path at which the values differ, apart from what their tensors hold; None if they do not."""
        for ours, theirs in zip_longest(self.leaves, other.leaves):
            if ours is None or theirs is None or ours.path != theirs.path:
                return str((ours or theirs).path)
        for ours, theirs in zip_longest(self.constants, other.constants):
            if ours is None or theirs is None or ours[0] != theirs[0] or not _equal(ours[1], theirs[1]):
                return str((ours or theirs)[0])
        return None


def flatten(value: Any, *, into_state: bool = False, apart: bool = False) -> Tree:
    """Take `value` apart.

    Args:
        value: anything.
        into_state: take objects apart that are no plain containers, too.
        apart: of these, look at what is InParts as that; otherwise as the one object that it shows.
    """
    walk = _Walk(into_state, apart)
    rebuild = walk.visit(value, "")
    return Tree(tuple(walk.leaves), rebuild, walk.has_state, tuple(walk.constants))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor replaced by `function(tensor)`; the value itself if nothing changed."""
    tree = flatten(value)
    changed = [function(tensor) for tensor in tree.tensors]
    if all(new is old for new, old in zip(changed, tree.tensors, strict=True)):
        return value
    return tree.rebuild(changed)


def is_plain(value: Any, holds: Callable[[Tensor], bool]) -> bool:
    """Whether `value` is made of plain tuples, lists, dicts and constants alone and `holds` is true of every tensor.

    Quick, for what is asked at every layer; flatten knows the other containers.
    """
    kind = type(value)
    if kind in _PLAIN_CONSTANTS:
        return True
    if kind is tuple or kind is list:
        parts = value
    elif kind is dict:
        parts = value.values()
    else:
        return isinstance(value, Tensor) and holds(value)
    for part in parts:  # noqa: SIM110 (a generator would double the time)
        if not is_plain(part, holds):
            return False
    return True


class _Walk:
    def __init__(self, into_state: bool, apart: bool) -> None:
        self.leaves: list[Leaf] = []
        self.constants: list[tuple[str, Any]] = []
        self.has_state = False
        self._into_state, self._apart = into_state, apart
        self._state_depth = 0
        self._open: set[int] = set()  # objects being walked: a cycle is left as it is

    def visit(self, value: Any, path: str) -> Rebuild:
        if isinstance(value, Tensor):
            self.leaves.append(Leaf(path, value, self._state_depth > 0))
            return next
        if isinstance(value, _NEVER_WALKED):
            return self._constant(value, path)
        if id(value) in self._open:
            return lambda _tensors: value
        self._open.add(id(value))
        try:
            return self._visit_container(value, path)
        finally:
            self._open.discard(id(value))

    def _visit_container(self, value: Any, path: str) -> Rebuild:
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, (tuple, list)):
            return self._sequence(value, path)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return self._object(value, {name: getattr(value, name) for name in names}, path)
        if callable(value) or not hasattr(value, "__dict__"):
            return self._constant(value, path)
        self.has_state = True
        if not self._into_state:
            return self._constant(value, path)
        self._state_depth += 1
        try:
            if self._apart and hasattr(type(value), "apart"):
                return self._parts(value, path)
            return self._object(value, vars(value), path)
        finally:
            self._state_depth -= 1

    def _parts(self, value: InParts, path: str) -> Rebuild:
        parts = value.apart()
        rebuild_parts = self.visit(parts, path)

        def rebuild(tensors: Iterator[Tensor]) -> Any:
            filled = rebuild_parts(tensors)
            return value if filled is parts else value.together(filled)

        return rebuild

    def _constant(self, value: Any, path: str) -> Rebuild:
        self.constants.append((path, value))
        return lambda _tensors: value

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Rebuild:
        parts = {key: self.visit(part, joined(path, key)) for key, part in value.items()}
        in_state = self._state_depth > 0

        def rebuild(tensors: Iterator[Tensor]) -> Any:
            filled = {key: part(tensors) for key, part in parts.items()}
            if in_state and all(filled[key] is value[key] for key in filled):
                return value
            if type(value) is dict:
                return filled
            if dataclasses.is_dataclass(value):  # transformers' ModelOutput: attributes and items must agree
                return type(value)(**filled)
            if not isinstance(value, MutableMapping):
                return type(value)(filled)  # type: ignore[call-arg]
            new = copy.copy(value)
            for key, part in filled.items():
                new[key] = part
            return new

        return rebuild

    def _sequence(self, value: tuple[Any, ...] | list[Any], path: str) -> Rebuild:
        if isinstance(value, PackedSequence):
            return self._packed(value, path)
        parts = [self.visit(part, joined(path, index)) for index, part in enumerate(value)]
        in_state = self._state_depth > 0

        def rebuild(tensors: Iterator[Tensor]) -> Any:
            filled = [part(tensors) for part in parts]
            if in_state and len(filled) == len(value) and all(map(operator.is_, filled, value)):
                return value
            return type(value)(*filled) if hasattr(value, "_fields") else type(value)(filled)

        return rebuild

    def _packed(self, value: PackedSequence, path: str) -> Rebuild:
        """Its batch sizes are no data: torch wants them on the host, whatever card the data is on."""
        data, *indices = (
            self.visit(part, joined(path, name))
            for name, part in zip(value._fields, value, strict=True)
            if name != "batch_sizes"
        )
        return lambda tensors: PackedSequence(data(tensors), value.batch_sizes, *(index(tensors) for index in indices))

    def _object(self, value: Any, attributes: Mapping[str, Any], path: str) -> Rebuild:
        before, given = len(self.leaves), dict(attributes)
        parts = {name: self.visit(part, joined(path, name)) for name, part in given.items()}
        if len(self.leaves) == before:
            return lambda _tensors: value
        in_state = self._state_depth > 0

        def rebuild(tensors: Iterator[Tensor]) -> Any:
            filled = {name: part(tensors) for name, part in parts.items()}
            if in_state and all(filled[name] is given[name] for name in given):
                return value  # who knows the object by what it is finds it again
            new = copy.copy(value)
            for name, part in filled.items():
                object.__setattr__(new, name, part)
            return new

        return rebuild


def _equal(a: Any, b: Any) -> bool:
    """Whether two constants are the same; those that cannot be compared are not."""
    if a is b:
        return True
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:
        return False
