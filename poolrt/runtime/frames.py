"""torch's checkpoint in lanes: a frame that runs again draws what it drew, on whichever card its lane is by then.

torch keeps the states of the generators that a frame's arguments lie on, and puts them back when the frame runs again.
In a lane that is wrong twice: the frame may draw on another card, to which it only goes; and a generator that is put
back may be another lane's by now. So in a lane a frame keeps how many layers the lane has called, and nothing else of
the cards: every call of a layer has a seed of its own.

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

from poolrt.runtime.lane import current
from poolrt.runtime.machine import LaneWalker
from poolrt.runtime.random_state import generator_of

_states_of_torch = torch.utils.checkpoint.get_device_states
_put_back_by_torch = torch.utils.checkpoint.set_device_states


@dataclass(frozen=True)
class Mark:
    """Where a lane was as a frame began."""

    calls: int
    """of layers, before"""
    held: tuple[torch.device, Tensor] | None
    """the card that the lane held, and its generator's state: what is drawn before the frame's first layer"""


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
    device = walker.lane.device
    held = None if device is None else (device, generator_of(device).get_state())
    return [], [Mark(walker.lane.calls, held)]


def _put_back(devices: Sequence[int], states: Sequence[Any], **options: Any) -> None:
    mark = states[0] if states else None
    if not isinstance(mark, Mark):
        _put_back_by_torch(devices, states, **options)
        return
    walker = current.walker
    assert isinstance(walker, LaneWalker), "what ran in a lane runs again in it"
    walker.lane.calls = mark.calls
    if mark.held is not None and walker.lane.device == mark.held[0]:
        generator_of(mark.held[0]).set_state(mark.held[1])
