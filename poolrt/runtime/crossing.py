"""Tensors that cross from card to card inside one lane: each is copied once per (tensor, version, card)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.trees import map_tensors


class Crossings:
    """The copies one micro-batch has made. A mask that every layer reads crosses to a card once, not once per layer."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int, torch.device], tuple[weakref.ref[Tensor], Tensor]] = {}
        self.copied_tensors = 0
        self.copied_nbytes = 0

    def find(self, tensor: Tensor, device: torch.device) -> Tensor | None:
        """The copy of `tensor` on `device` made earlier, if the tensor has not changed since."""
        source, copy = self._copies.get(_key(tensor, device), (None, None))
        return copy if source is not None and source() is tensor else None

    def move(self, tensor: Tensor, device: torch.device, source: Tensor | None = None) -> Tensor:
        """`tensor` on `device`: itself if it is there, else its one copy.

        Args:
            tensor: what to move.
            device: where to.
            source: the tensor to copy from, where autograd must see another one than `tensor` (the hop's output).
        """
        if tensor.device == device:
            return tensor
        found = self.find(tensor, device)
        if found is not None:
            return found
        copy = (tensor if source is None else source).to(device, non_blocking=True)
        key = _key(tensor, device)
        self._copies[key] = (weakref.ref(tensor, self._forget(key)), copy)
        self.copied_tensors += 1
        self.copied_nbytes += copy.nbytes
        return copy

    def move_all(self, value: Any, device: torch.device) -> Any:
        """`value` with every tensor inside on `device`."""
        return map_tensors(value, lambda tensor: self.move(tensor, device))

    def clear(self) -> None:
        """Let go of every copy."""
        self._copies.clear()

    def _forget(self, key: tuple[int, int, torch.device]) -> Callable[[weakref.ref[Tensor]], None]:
        copies = weakref.ref(self)

        def forget(_dead: weakref.ref[Tensor]) -> None:
            crossings = copies()
            if crossings is not None:
                crossings._copies.pop(key, None)

        return forget


def _key(tensor: Tensor, device: torch.device) -> tuple[int, int, torch.device]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version, device
