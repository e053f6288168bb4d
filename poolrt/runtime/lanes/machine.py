"""What every step works with: where the layers are, and what happens as a lane meets one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.lanes.glue import Glue, pause, resume
from poolrt.runtime.lanes.lane import Lane
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.state.trees import flatten


@dataclass
class Machine:
    """What a step needs besides the batch: where things are, what runs, how many threads a lane has."""

    placement: Placement
    forward: Callable[..., Any]
    threads_per_lane: int
    watched: set[nn.Module] = field(default_factory=set)
    """layers inside which scalars are watched as in glue (they compute a loss)"""
    watch_all: bool = False
    """watch inside every layer, to find those"""

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The cards' devices."""
        return self.placement.devices

    @property
    def device_types(self) -> tuple[str, ...]:
        """Their kinds, each once, without the CPU."""
        return tuple(dict.fromkeys(device.type for device in self.devices if device.type != "cpu"))


class LaneWalker:
    """Takes the lane to each layer's card, and switches the watch over glue code off inside layers."""

    def __init__(self, machine: Machine, lane: Lane, glue: Glue) -> None:
        self._machine, self.lane, self._glue = machine, lane, glue
        self.before_next: list[Callable[[], None]] = []
        """what is to be done before the next layer"""
        self._paused: list[bool] = []

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Go to the layer's card with its arguments."""
        self._paused.append(pause(self._glue))  # first: looking at a tensor's device would call the watch
        while self.before_next:
            self.before_next.pop()()
        moved = self.lane.enter(self._machine.placement.card_of_layer[layer], (args, kwargs))
        self.lane.seed_call()
        if self._is_watched(layer) and self._paused[-1]:
            self._paused[-1] = False
            resume(self._glue)
        return moved

    def _is_watched(self, layer: nn.Module) -> bool:
        return self._machine.watch_all or layer in self._machine.watched

    def after(self, layer: nn.Module, output: Any) -> Any:
        """Glue code follows. A layer that turns out to compute scalars of the batch is watched from now on."""
        self.lane.crossings.note_changes()
        if self._paused and self._paused.pop():
            resume(self._glue)
        elif self._machine.watch_all and any(rule_of(t) is not None for t in flatten(output).tensors):
            self._machine.watched.add(layer)
        return output
