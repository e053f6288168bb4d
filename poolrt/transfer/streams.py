r"""Side streams: copies run in streams of their own, so that they neither wait for a card's work nor hold it up.

    card's stream   [layer] o ......................  [next layer of another micro-batch]
                             \ event
    side stream               '-> [copy] o
                                          \ event
    other card's stream                    '-> [layer that reads the copy]

One code path for GPUs and virtual cards: torch's generic streams and events.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports

_streams: dict[tuple[torch.device, str], torch.Stream] = {}
_lock = threading.Lock()


def side_stream(device: torch.device, purpose: str) -> torch.Stream:
    """The stream of `device` for `purpose`: always the same one. Streams are in order, so one purpose is one queue."""
    key = (device, purpose)
    stream = _streams.get(key)
    if stream is None:
        with _lock:
            stream = _streams.setdefault(key, torch.Stream(device=device))
    return stream


def current_stream(device: torch.device) -> torch.Stream:
    """The stream this thread's work on `device` goes to."""
    stream: torch.Stream = torch.get_device_module(device).current_stream(device)
    return stream


class working_in:  # noqa: N801 (reads as a block: `with working_in(stream)`)
    """A block of code whose work goes to `stream`. Threads may be inside for one stream at once, and one thread twice.

    Not so, in every torch from 2.11 on, where the stream itself is used as the block: it keeps what was current before.
    """

    __slots__ = ("_device", "_outer", "_stream")

    def __init__(self, stream: torch.Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._device = torch.accelerator.current_device_index()
        self._outer = torch.accelerator.current_stream(self._stream.device)
        torch.accelerator.set_stream(self._stream)
        torch.accelerator.set_device_index(self._device)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        torch.accelerator.set_stream(self._outer)
        torch.accelerator.set_device_index(self._device)


def record(stream: torch.Stream) -> torch.Event:
    """The moment at which all that `stream` was given until now has been done.

    Always torch's generic event, whose `wait` takes any stream: the generic streams do not take torch.cuda's events.
    """
    event = torch.Event(device=stream.device)
    event.record(stream)
    return event


def mark(device: torch.device) -> torch.Event:
    """The moment at which all that this thread's stream of `device` was given until now has been done."""
    return record(current_stream(device))


def settle(streams: Iterable[torch.Stream]) -> None:
    """Wait until these streams have nothing left to do. What failed in them is not told again: the caller knows."""
    for stream in streams:
        with suppress(torch.AcceleratorError):
            stream.synchronize()


def runs_beside(source: torch.device, target: torch.device) -> bool:
    """Whether a copy from card to card goes on while the cards work, so that it pays to start it early."""
    return source != target and source.type == target.type != "cpu" and not is_immediate(source, target)


def is_immediate(source: torch.device, target: torch.device) -> bool:
    """Whether a copy is done when the call returns: between virtual cards whose links have no set speed."""
    return source.type == "vcard" and not _C.copies_take_time(source.index or 0, target.index or 0)


def release(device_type: str) -> None:
    """Let go of the streams of these devices."""
    with _lock:
        for key in [key for key in _streams if key[0].type == device_type]:
            del _streams[key]
