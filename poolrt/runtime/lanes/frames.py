"""torch's checkpoint in lanes: a frame that runs again draws what it drew, on whichever card its lane is by then.

torch keeps the states of the generators that a frame's arguments lie on, and puts them back when the frame runs again.
In a lane that is wrong twice: the frame may draw on another card, to which it only goes; and a generator that is put
back may be another lane's by now. So in a lane a frame keeps how many layers the lane has called: every call of a layer
has a seed of its own. Only if code between layers drew at the frame's begin does the lane go back to that card.

    forward     layer 0   layer 1   [ layer 2   layer 3 ]             seed of a call = mix(forward's seed, call, lane)
    call        0         1         [ 2         3       ]
    backward                        [ 2         3       ] again       the frame's mark says: from 2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from poolrt.runtime.lanes.lane import Lane, current
from poolrt.runtime.lanes.machine import LaneWalker
from poolrt.runtime.state.generators import generator_of

_states_of_torch = torch.utils.checkpoint.get_device_states
_put_back_by_torch = torch.utils.checkpoint.set_device_states


@dataclass
class Mark:
    """Where a lane was as a frame began."""

    lane: Lane
    calls: int
    """of layers, before"""
    card: int | None
    """that the lane held"""
    state: Tensor | None
    """of that card's generator"""
    drawn: bool = True
    """whether glue drew from it, between the begin of the frame and its first layer"""

    @staticmethod
    def of(walker: LaneWalker) -> Mark:
        """Where the walker's lane is now."""
        lane = walker.lane
        mark = Mark(lane, lane.calls, lane.card, None if lane.device is None else _state(lane.device))
        walker.before_next.append(mark.note_draws)
        return mark

    def note_draws(self) -> None:
        """The lane is about to call a layer, and may leave the card."""
        if self.state is not None and self.lane.card == self.card and self.lane.device is not None:
            self.drawn = not torch.equal(self.state, _state(self.lane.device))

    def put_back(self) -> None:
        """The frame runs again: calls count from here, and glue draws what it drew."""
        lane = self.lane
        lane.calls = self.calls
        if self.card is None or self.state is None:
            return
        if self.drawn:
            lane.go(self.card)
        if lane.card == self.card and lane.device is not None:
            generator_of(lane.device).set_state(self.state)


def _state(device: torch.device) -> Tensor:
    return generator_of(device).get_state()


def know_lanes() -> None:
    """From now on torch's checkpoint asks here what to keep of generators; outside lanes it is as ever.

    Both functions are torch's own, public, and called by its checkpoint of either kind; they have no hook.
    """
    torch.utils.checkpoint.get_device_states = _states
    torch.utils.checkpoint.set_device_states = _put_back


@contextmanager
def host_generator_kept() -> Iterator[None]:
    """The host's generator is afterwards as before: frames of several lanes put it to and fro at the same time."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _states(*args: Any) -> tuple[list[int], list[Any]]:
    walker = current.walker
    if not isinstance(walker, LaneWalker) or not walker.lane.is_seeded:
        return _states_of_torch(*args)
    return [], [Mark.of(walker)]


def _put_back(devices: Sequence[int], states: Sequence[Any], **options: Any) -> None:
    if states and isinstance(states[0], Mark):
        states[0].put_back()
    else:
        _put_back_by_torch(devices, states, **options)
