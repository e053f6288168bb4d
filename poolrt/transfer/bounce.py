"""The HOST route: a ring of pinned buffers between two cards. `ring` says in which order; here it is carried out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

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
        self._views: dict[tuple[int, torch.dtype], Tensor] = {}
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
        """Copy after all, and before all, that this thread's streams of both cards are given.

        Args:
            source: of the source card.
            target: of the target card, whose bytes are to be the source's, in the order of memory: see
                `form.are_same_bytes`.
        """
        devices = {"producer": self.source, "consumer": self.target}
        events: dict[EventName, torch.Event] = {}

        def current(side: Side) -> torch.Stream:
            return current_stream(devices[side])

        self.carry_out(BEFORE, source, target, current, events)
        try:
            with self._enqueuing:
                self.carry_out(self.steps(source.nbytes), source, target, current, events)
        finally:
            source.record_stream(self.down)
            target.record_stream(self.up)
        try:
            self.carry_out(AFTER, source, target, current, events)
        except torch.AcceleratorError:
            settle(self.streams)
            raise

    def start(self, source: Tensor, target: Tensor, given: torch.Event) -> torch.Event:
        """As `copy`, after `given` and into a target that nobody uses yet; the event of its arrival.

        Nobody may change the source before that.
        """
        events: dict[EventName, torch.Event] = {GIVEN: given}
        with self._enqueuing:
            steps = self.steps(source.nbytes, new_target=True)
            self.carry_out(steps, source, target, self._streams.__getitem__, events)
        return events[ARRIVED]

    def carry_out(
        self,
        steps: Sequence[Step],
        source: Tensor,
        target: Tensor,
        stream_of: Callable[[Side], torch.Stream],
        events: dict[EventName, torch.Event],
    ) -> None:
        """Enqueue `steps`.

        Args:
            steps: what to do.
            source: on the source card.
            target: the same bytes on the target card.
            stream_of: the streams of the producer and the consumer, where the steps speak of them.
            events: of this copy alone; those that are recorded are added.
        """
        for step in steps:
            stream = self._streams.get(step.side) or stream_of(step.side)
            if isinstance(step, Copy):
                self._copy(step, stream, source if step.side == "down" else target)
            elif isinstance(step, Record):
                if step.event in self._events:
                    self._events[step.event].record(stream)
                else:
                    events[step.event] = record(stream)
            else:
                (self._events.get(step.event) or events[step.event]).wait(stream)

    def _copy(self, step: Copy, stream: torch.Stream, tensor: Tensor) -> None:
        chunk = self._chunk(tensor, step.chunk)
        buffer = self._view(step.buffer, tensor.dtype).narrow(0, 0, chunk.numel())
        with working_in(stream):
            if step.side == "down":
                buffer.copy_(chunk, non_blocking=True)
            else:
                chunk.copy_(buffer, non_blocking=True)

    def _chunk(self, tensor: Tensor, position: int) -> Tensor:
        """A stretch of the tensor's memory, in its own type: to see it as bytes would take as long again."""
        size = self._chunk_nbytes(tensor.nbytes) // tensor.dtype.itemsize
        first = position * size
        return tensor.as_strided((min(size, tensor.numel() - first),), (1,), tensor.storage_offset() + first)

    def _view(self, buffer: int, dtype: torch.dtype) -> Tensor:
        key = (buffer, dtype)
        if key not in self._views:
            self._views[key] = self._buffers[buffer].view(dtype)
        return self._views[key]


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
