"""What a forward may change besides its outputs: buffers, tensors kept as attributes, and generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ModelState:
    """A copy, on the host, of every tensor a module holds that is no parameter."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (f"{path}.{name}" if path else name, holder, name, tensor, tensor.detach().to("cpu", copy=True))
            for path, module in model.named_modules()
            for holder in (module._buffers, module.__dict__)
            for name, tensor in holder.items()
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
        ]

    def restore(self) -> None:
        """Put every tensor back: the object and its values."""
        with torch.no_grad():
            for _, holder, name, tensor, copy in self._kept:
                holder[name] = tensor
                if not _same(tensor, copy):
                    tensor.copy_(copy)

    def changes_since(self, other: ModelState) -> str | None:
        """The name of a tensor that differs between two states of one model; None if none does."""
        before = {name: copy for name, _, _, _, copy in other._kept}
        for name, _, _, _, copy in self._kept:
            if name not in before or not _close(copy, before[name]):
                return name
        return None


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
    return sys.modules.get("numpy.random")


def _same(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and torch.equal(tensor.detach().cpu(), copy)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
