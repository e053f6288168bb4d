"""What a forward may change besides its outputs: buffers, tensors and numbers kept as attributes, and generators."""

from __future__ import annotations

import copy
import importlib
import random
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.runtime.state.paths import joined
from poolrt.runtime.state.trees import Tree, flatten

_BOOKKEEPING = frozenset(nn.Module().__dict__)
_CONTAINERS = (list, dict, tuple)
_KINDS = (Tensor, int, float, *_CONTAINERS)
_NOT_STATE = (bool, nn.Parameter)
_CLOSED = (Tensor, nn.Module, type, types.ModuleType)
_MOST_OBJECTS = 10_000
"""how many containers and objects are looked into; a model may hold a whole data set"""


class ModelState:
    """A copy, on the host, of what a model's modules hold besides parameters: tensors, numbers, and containers of them.

    Flags and other objects are left alone: they remember what was done once (hooks installed, caches built).
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            _Kept(joined(path, name), holder, name, value)
            for path, holder in _holders(model)
            for name, value in holder.items()
            if name not in _BOOKKEEPING and isinstance(value, _KINDS) and not isinstance(value, _NOT_STATE)
        ]

    def restore(self) -> None:
        """Put everything back: the objects and their values."""
        with torch.no_grad():
            for kept in self._kept:
                kept.restore()

    def changes_since(self, other: ModelState) -> str | None:
        """The name of something that differs between two states of one model; None if nothing does."""
        before = {kept.path: kept for kept in other._kept}
        for kept in self._kept:
            if kept.path not in before or not kept.is_close_to(before[kept.path]):
                return kept.path
        return None


def _holders(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, attributes) of the model's modules, and of the plain objects they hold: a cache, a context, a config."""
    met: set[int] = set()
    waiting: list[tuple[str, Any]] = []
    for path, module in model.named_modules():
        yield path, module._buffers
        yield path, module.__dict__
        waiting += [(joined(path, name), value) for name, value in module.__dict__.items() if name not in _BOOKKEEPING]
    while waiting and len(met) < _MOST_OBJECTS:
        path, value = waiting.pop()
        parts = _parts(value)
        if not parts or id(value) in met:
            continue
        met.add(id(value))
        waiting += [(joined(path, name), part) for name, part in parts]
        if not isinstance(value, _CONTAINERS):
            yield path, vars(value)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """(name, part) of what a container or a plain object holds."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, _CONTAINERS):
        return list(enumerate(value))
    closed = callable(value) or isinstance(value, _CLOSED) or not hasattr(value, "__dict__")
    return [] if closed else list(vars(value).items())


class _Kept:
    """One attribute of a module, and what it held."""

    def __init__(self, path: str, holder: dict[str, Any], name: str, value: Any) -> None:
        self.path = path
        self._holder, self._name, self._value = holder, name, value
        self._content = copy.copy(value) if isinstance(value, (list, dict)) else None
        tree = flatten(value)
        self._numbers = _numbers_in(tree)
        self._tensors = [(t, t.detach().to("cpu", copy=True)) for t in _tensors_in(tree)]

    def restore(self) -> None:
        self._holder[self._name] = self._value
        if isinstance(self._value, list):
            self._value[:] = self._content or ()
        elif isinstance(self._value, dict):
            self._value.clear()
            self._value.update(self._content or {})
        for tensor, was in self._tensors:
            if not _same(tensor, was):
                tensor.copy_(was)

    def is_close_to(self, other: _Kept) -> bool:
        return (
            self._numbers == other._numbers
            and len(self._tensors) == len(other._tensors)
            and all(_close(a, b) for (_, a), (_, b) in zip(self._tensors, other._tensors, strict=True))
        )


def _numbers_in(tree: Tree) -> list[tuple[str, float]]:
    return [(path, value) for path, value in tree.constants if type(value) in (int, float)]


def _tensors_in(tree: Tree) -> list[Tensor]:
    return [tensor for tensor in tree.tensors if not isinstance(tensor, nn.Parameter)]


@contextmanager
def state_restored(model: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """Afterwards the model's tensors and every generator are as before."""
    state, generators = ModelState(model), GeneratorStates(devices)
    try:
        yield
    finally:
        state.restore()
        generators.restore()


class GeneratorStates:
    """The state of torch's generators (host and cards), Python's and NumPy's."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = [device for device in dict.fromkeys(devices) if device.type != "cpu"]
        self._torch = torch.get_rng_state()
        self._cards = [torch.get_device_module(device).get_rng_state(device) for device in self._devices]
        self._python = random.getstate()
        self._numpy: Any = _numpy_random().get_state(legacy=True) if _numpy_random() else None

    def restore(self) -> None:
        """Set every generator back."""
        torch.set_rng_state(self._torch)
        for device, state in zip(self._devices, self._cards, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy is not None:
            _numpy_random().set_state(self._numpy)

    def first_difference(self, other: GeneratorStates) -> str | None:
        """Which generator was drawn from between two states; None if none was."""
        if not torch.equal(self._torch, other._torch):
            return "torch's generator of the host"
        if any(not torch.equal(a, b) for a, b in zip(self._cards, other._cards, strict=True)):
            return "a card's generator"
        if self._python != other._python:
            return "Python's random module"
        if self._numpy is not None and other._numpy is not None and repr(self._numpy) != repr(other._numpy):
            return "NumPy's global generator"
        return None


def _numpy_random() -> Any:
    """numpy.random, which numpy itself loads only when it is asked for; None where numpy is not in use."""
    return importlib.import_module("numpy.random") if "numpy" in sys.modules else None


def _same(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and torch.equal(tensor.detach().cpu(), copy)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
