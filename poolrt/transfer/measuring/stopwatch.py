"""How long copies take, by the clock that the cards have.

On GPUs events time them, and a latch holds the streams back until everything is queued, so that the host's own time to
queue is not measured:

    lead    | latch .......... | start | copy | wait for the other | end |
    other                wait for start | copy |
    host      queues everything --> latch still held? else once more with a longer one

On virtual cards it is the host's clock, from before the first is queued until the last has arrived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from poolrt.transfer.measuring.leg import Leg, limit_s, wait_within

_LATCH_CYCLES = (1_000_000, 8_000_000, 64_000_000)
"""of a GPU's clock, about 1.5 GHz: 0.7, 5 and 43 ms"""


def time_copies(legs: Sequence[Leg], nbytes: int) -> float:
    """Seconds of one copy of `nbytes` on each leg, all at once.

    Raises:
        HungError: if one did not end.
        RuntimeError: torch's, if one failed.
    """
    by_events = legs[0].source.device.type == "cuda"
    return (_by_events if by_events else _by_the_clock)(legs, nbytes)


def _by_the_clock(legs: Sequence[Leg], nbytes: int) -> float:
    start = time.perf_counter()
    for leg in legs:
        leg.queue(nbytes)
    for event in [leg.done() for leg in legs]:
        event.synchronize()
    return time.perf_counter() - start


def _by_events(legs: Sequence[Leg], nbytes: int) -> float:
    lead = legs[0].streams[0]
    seconds = 0.0
    for cycles in _LATCH_CYCLES:
        start, end = (torch.Event(device=lead.device, enable_timing=True) for _ in range(2))
        with lead:
            torch.cuda._sleep(cycles)
        start.record(lead)
        for leg in legs:
            leg.wait(start)
        for leg in legs:
            leg.queue(nbytes)
        held = not start.query()
        for leg in legs:
            leg.lead_to(lead)
        end.record(lead)
        wait_within([end], limit_s(nbytes))
        seconds = start.elapsed_time(end) / 1e3
        if held:
            break
    return seconds
