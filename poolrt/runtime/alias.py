"""Aliases: leaves that stand in for the parameters while the lanes run, so that each micro-batch has its own graph.

    parameter p (card 0)   ->  alias on card 0: p.detach()                 accumulates the gradients of all lanes
                           ->  alias on card 1: a copy, for a tied layer   likewise; added to the first one at home

User hooks on a parameter, and its `.grad`, see one summed gradient per backward, as without poolrt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from poolrt.runtime.place import Placement, Slot
from poolrt.transfer.move import move


@dataclass
class _StandIns:
    """One parameter's stand-ins, in the order in which the model registers the places that use it."""

    parameter: nn.Parameter
    uses: int
    aliases: dict[tuple[torch.device, int], nn.Parameter] = field(default_factory=dict)

    def at(self, device: torch.device, learns: bool) -> nn.Parameter:
        """The stand-in for the next place, which runs on `device`.

        One per card is enough for two places: a sum of two has the same bits in any order. With more, each place has
        its own, so that they can be added as one card would add them.
        """
        key = (device, len(self.aliases) if self.uses > 2 else 0)
        if key not in self.aliases:
            self.aliases[key] = nn.Parameter(move(self.parameter.detach(), device), requires_grad=learns)
        return self.aliases[key]

    def take_gradient(self) -> Tensor | None:
        """The sum of the gradients, last use first as backward meets them, on the parameter's device."""
        total: Tensor | None = None
        for alias in reversed(self.aliases.values()):
            gradient, alias.grad = alias.grad, None
            if gradient is not None:
                gradient = move(gradient, self.parameter.device)
                total = gradient if total is None else total.add_(gradient)
        return total


class Aliases:
    """The stand-ins of one forward, and of the backward that may follow it."""

    def __init__(self, placement: Placement, learning: bool) -> None:
        self._of: dict[int, _StandIns] = {}
        self._swaps: list[tuple[Slot, nn.Parameter, nn.Parameter]] = []
        slots = placement.slots()
        uses = Counter(id(slot.parameter) for slot in slots)
        for slot in slots:
            parameter, device = slot.parameter, placement.devices[slot.card]
            learns = learning and parameter.requires_grad
            if parameter.device != device or learns:
                known = self._of.setdefault(id(parameter), _StandIns(parameter, uses[id(parameter)]))
                self._swaps.append((slot, parameter, known.at(device, learns)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that have stand-ins, in the order of `take_gradients`."""
        return [known.parameter for known in self._of.values() if known.parameter.requires_grad]

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
        return [known.take_gradient() for known in self._of.values() if known.parameter.requires_grad]

    def drop_gradients(self) -> None:
        """Forget what was accumulated, after a backward that failed."""
        for known in self._of.values():
            for alias in known.aliases.values():
                alias.grad = None
