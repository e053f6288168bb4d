"""One direction of a measurement: a buffer on each of two cards, and the streams in which copies between them queue."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from poolrt.topology.route import RouteKind
from poolrt.transfer.measuring.pattern import WORD_NBYTES
from poolrt.transfer.streams import record, working_in

_POLL_S = 50e-6
# A copy that hangs does so for good. The slowest way between two cards that works (generation 1, one lane, through the
# host) carries 0.1 GB/s.
_PATIENCE_S, _PATIENT_BYTES_PER_S = 10.0, 50e6


class Copier(Protocol):
    """Queues a copy of a whole tensor into one of the same shape on another card."""

    def __call__(self, kind: RouteKind, source: Tensor, target: Tensor, /) -> object:
        """In the current stream of the target's card `target` has arrived; `source` is ready in its card's."""


class HungError(RuntimeError):
    """A copy that did not end. Nothing more can be asked of its cards in this process."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Copies from one buffer to another by one route."""

    copier: Copier
    route: RouteKind
    source: Tensor
    target: Tensor
    streams: tuple[torch.Stream, ...]
    """one per device, the source's first"""

    def queue(self, nbytes: int) -> None:
        """Queue a copy of the first `nbytes`."""
        words = nbytes // WORD_NBYTES
        with ExitStack() as streams:
            for stream in self.streams:
                streams.enter_context(working_in(stream))
            self.copier(self.route, self.source[:words], self.target[:words])

    def wait(self, event: torch.Event) -> None:
        """Have what is queued from now on start after `event`."""
        for stream in self.streams:
            event.wait(stream)

    def lead_to(self, stream: torch.Stream) -> None:
        """Have what is queued in `stream` from now on start after all copies queued so far."""
        for own in self.streams:
            if own != stream:
                record(own).wait(stream)

    def done(self) -> torch.Event:
        """An event that passes when all copies queued so far have arrived."""
        lead = self.streams[0]
        self.lead_to(lead)
        return record(lead)


def make_leg(copier: Copier, route: RouteKind, source: Tensor, target: Tensor) -> Leg:
    """A leg with streams of its own."""
    devices = dict.fromkeys((source.device, target.device))
    streams = tuple(torch.Stream(device=device) for device in devices)
    return Leg(copier=copier, route=route, source=source, target=target, streams=streams)


def limit_s(nbytes: int) -> float:
    """Seconds after which a copy of `nbytes` counts as one that never ends."""
    return _PATIENCE_S + nbytes / _PATIENT_BYTES_PER_S


def wait_within(events: Iterable[torch.Event], seconds: float) -> None:
    """Wait for events, but not for ever.

    Raises:
        HungError: if they have not passed in time.
        RuntimeError: torch's, if a copy before one of them failed.
    """
    deadline = time.monotonic() + seconds
    for event in events:
        while not event.query():
            if time.monotonic() > deadline:
                raise HungError(f"did not end within {seconds:.0f} s")
            time.sleep(_POLL_S)
        event.synchronize()  # has passed: reports a copy that failed
