"""The HOST route: a ring of pinned buffers between two cards. `ring` says in which order; here it is carried out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from poolrt.transfer.ring import (
    AFTER,
    ARRIVED,
    BEFORE,
    BUFFERS,
    CHUNK_NBYTES,
    GIVEN,
    Copy,
    EventName,
    Record,
    Side,
    Step,
    chunk_nbytes,
    ring_steps,
)
from poolrt.transfer.streams import current_stream, record, settle, side_stream, working_in


class BounceRing:
    """The buffers and streams between `source` and `target`, made once. One copy at a time is enqueued.

    Args:
        source: the card that is read.
        target: the card that is written; it may be the same one.
        chunk_nbytes: the size of one buffer: larger chunks there are not.
        buffers: how many chunks are in the host at most.
    """

    def __init__(
        self, source: torch.device, target: torch.device, *, chunk_nbytes: int = CHUNK_NBYTES, buffers: int = BUFFERS
    ) -> None:
        self.source, self.target = source, target
        self._buffers = [torch.empty(chunk_nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(buffers)]
        self._streams: dict[Side, torch.Stream] = {
            "down": side_stream(source, f"down, to {target}"),
            "up": side_stream(target, f"up, from {source}"),
        }
        self._events: dict[EventName, torch.Event] = {}
        for buffer in range(buffers):
            self._events["full", buffer] = torch.Event(device=source)
            self._events["free", buffer] = torch.Event(device=target)
        self._enqueuing = threading.Lock()

    @property
    def down(self) -> torch.Stream:
        """The stream of copies from the source card to the buffers."""
        return self._streams["down"]

    @property
    def up(self) -> torch.Stream:
        """The stream of copies from the buffers to the target card."""
        return self._streams["up"]

    @property
    def streams(self) -> tuple[torch.Stream, torch.Stream]:
        """Both."""
        return self.down, self.up

    @property
    def nbytes(self) -> int:
        """Bytes of the host that the buffers take."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def steps(self, nbytes: int, *, new_target: bool = False) -> Sequence[Step]:
        """What a copy of `nbytes` takes."""
        return ring_steps(-(-nbytes // self._chunk_nbytes(nbytes)), len(self._buffers), new_target=new_target)

    def _chunk_nbytes(self, nbytes: int) -> int:
        return min(chunk_nbytes(nbytes), self._buffers[0].nbytes)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy flat bytes after all, and before all, that this thread's streams of both cards are given."""
        sides: dict[Side, torch.Stream] = {
            "producer": current_stream(self.source),
            "consumer": current_stream(self.target),
        }
        events: dict[EventName, torch.Event] = {}
        source.record_stream(self.down)
        target.record_stream(self.up)
        self.carry_out(BEFORE, source, target, sides, events)
        with self._enqueuing:
            self.carry_out(self.steps(source.nbytes), source, target, sides, events)
        try:
            self.carry_out(AFTER, source, target, sides, events)
        except torch.AcceleratorError:
            settle(self.streams)
            raise

    def start(self, source: Tensor, target: Tensor, given: torch.Event) -> torch.Event:
        """Copy flat bytes after `given` into a target that nobody uses yet; the event of their arrival.

        Nobody may change the source before that.
        """
        events: dict[EventName, torch.Event] = {GIVEN: given}
        with self._enqueuing:
            self.carry_out(self.steps(source.nbytes, new_target=True), source, target, {}, events)
        return events[ARRIVED]

    def carry_out(
        self,
        steps: Sequence[Step],
        source: Tensor,
        target: Tensor,
        sides: Mapping[Side, torch.Stream],
        events: dict[EventName, torch.Event],
    ) -> None:
        """Enqueue `steps`.

        Args:
            steps: what to do.
            source: flat bytes on the source card.
            target: as many on the target card.
            sides: the streams of the producer and the consumer, where the steps speak of them.
            events: of this copy alone; those that are recorded are added.
        """
        size = self._chunk_nbytes(source.nbytes)
        pieces = (source.split(size), target.split(size))
        for step in steps:
            stream = self._streams.get(step.side) or sides[step.side]
            if isinstance(step, Copy):
                self._copy(step, stream, pieces)
            elif isinstance(step, Record):
                if step.event in self._events:
                    self._events[step.event].record(stream)
                else:
                    events[step.event] = record(stream)
            else:
                (self._events.get(step.event) or events[step.event]).wait(stream)

    def _copy(self, step: Copy, stream: torch.Stream, pieces: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        source, target = pieces[0][step.chunk], pieces[1][step.chunk]
        buffer = self._buffers[step.buffer].narrow(0, 0, source.nbytes)
        with working_in(stream):
            if step.side == "down":
                buffer.copy_(source, non_blocking=True)
            else:
                target.copy_(buffer, non_blocking=True)


_rings: dict[tuple[torch.device, torch.device], BounceRing] = {}
_lock = threading.Lock()


def ring_between(source: torch.device, target: torch.device) -> BounceRing:
    """The ring of this pair, made with its first copy."""
    pair = (source, target)
    ring = _rings.get(pair)
    if ring is None:
        with _lock:
            ring = _rings.get(pair) or _rings.setdefault(pair, BounceRing(source, target))
    return ring


def rings_nbytes() -> int:
    """Bytes of the host that all rings of this process hold."""
    return sum(ring.nbytes for ring in list(_rings.values()))


def release(device_type: str | None = None) -> int:
    """Give the buffers back: of these devices, or of all; how many bytes. Copies that are under way must have ended."""
    with _lock:
        gone = [pair for pair in _rings if device_type in (None, pair[0].type, pair[1].type)]
        return sum(_rings.pop(pair).nbytes for pair in gone)
