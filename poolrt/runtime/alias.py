"""Aliases: leaves that stand in for the parameters while the lanes run, so that each micro-batch has its own graph.

    parameter p (card 0)   ->  alias on card 0: p.detach()                 accumulates the gradients of all lanes
                           ->  alias on card 1: a copy, for a tied layer   likewise; added to the first one at home

User hooks on a parameter, and its `.grad`, see one summed gradient per backward, as without poolrt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from poolrt.runtime.place import Placement, Slot


class Aliases:
    """The stand-ins of one forward, and of the backward that may follow it."""

    def __init__(self, placement: Placement, learning: bool) -> None:
        self._of: dict[int, tuple[nn.Parameter, dict[torch.device, nn.Parameter]]] = {}
        self._swaps: list[tuple[Slot, nn.Parameter, nn.Parameter]] = []
        for slot in placement.slots():
            parameter = slot.module._parameters[slot.name]
            assert parameter is not None
            device = placement.devices[slot.card]
            if parameter.device != device or (learning and parameter.requires_grad):
                self._swaps.append((slot, parameter, self._alias(parameter, device, learning)))

    def _alias(self, parameter: nn.Parameter, device: torch.device, learning: bool) -> nn.Parameter:
        _, by_device = self._of.setdefault(id(parameter), (parameter, {}))
        if device not in by_device:
            learns = learning and parameter.requires_grad
            by_device[device] = nn.Parameter(parameter.detach().to(device), requires_grad=learns)
        return by_device[device]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that have stand-ins, in the order of `take_gradients`."""
        return [parameter for parameter, _ in self._of.values() if parameter.requires_grad]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules hold the stand-ins; afterwards their own parameters again, whatever happened."""
        try:
            for slot, _, alias in self._swaps:
                slot.module._parameters[slot.name] = alias
            self._refresh_flat_weights()
            yield
        finally:
            for slot, parameter, _ in self._swaps:
                slot.module._parameters[slot.name] = parameter
            self._refresh_flat_weights()

    def _refresh_flat_weights(self) -> None:
        """LSTM and GRU keep a second list of their parameters and read only that."""
        for module in {slot.module for slot, _, _ in self._swaps}:
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    def take_gradients(self) -> list[Tensor | None]:
        """The summed gradient of each of `parameters` on its own device; the stand-ins keep none."""
        return [
            _sum_at(parameter.device, list(by_device.values()))
            for parameter, by_device in self._of.values()
            if parameter.requires_grad
        ]

    def drop_gradients(self) -> None:
        """Forget what was accumulated, after a backward that failed."""
        for _, by_device in self._of.values():
            for alias in by_device.values():
                alias.grad = None


def _sum_at(device: torch.device, aliases: list[nn.Parameter]) -> Tensor | None:
    total: Tensor | None = None
    for alias in sorted(aliases, key=lambda alias: alias.device != device):
        gradient, alias.grad = alias.grad, None
        if gradient is not None:
            total = gradient.to(device) if total is None else total.add_(gradient.to(device))
    return total
