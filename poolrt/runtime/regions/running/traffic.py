"""The copies between cards that a model's regions make: counted by step, and none made twice in one forward.

with traffic.forward():
    model(...)              a mask that every layer reads crosses to each card once
loss.backward()             counts with its forward
traffic.crossed             (tensors, bytes) of the last step that went backward
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from poolrt.transfer.collectives.exchange import Exchange
from poolrt.transfer.collectives.known import KnownCopies
from poolrt.transfer.collectives.run import Note


class Step:
    """The copies of one forward, and of its backward; `note` is told of each."""

    def __init__(self, note: Note | None = None) -> None:
        self.tensors = self.nbytes = 0
        self._note = note
        self.known: KnownCopies | None = KnownCopies()
        """None once the forward is over"""
        self.went_back = False
        """whether anything was copied afterwards"""
        self._counting = threading.Lock()  # in backward every card has a thread

    def count(self, tensor: Tensor) -> None:
        """One more copy."""
        with self._counting:
            self.tensors += 1
            self.nbytes += tensor.nbytes
            self.went_back = self.went_back or self.known is None
            if self._note is not None:
                self._note(tensor)


class _Current(threading.local):
    step: Step | None = None


class Traffic:
    """The copies that the regions of one model make. Lanes of one model may run forward at once, each in its thread."""

    def __init__(self) -> None:
        self._current = _Current()
        self._last: Step | None = None
        self._went_back: Step | None = None

    @property
    def crossed(self) -> tuple[int, int] | None:
        """(tensors, bytes) copied from card to card in the last step that went backward; None before the first."""
        step = self._last if self._last is not None and self._last.went_back else self._went_back
        return None if step is None else (step.tensors, step.nbytes)

    @contextmanager
    def forward(self, note: Note | None = None) -> Iterator[Step]:
        """A forward: what is forked inside is sent to each card once. `note` is told of every copy, in backward too."""
        if self._last is not None and self._last.went_back:
            self._went_back = self._last
        outer, step = self._current.step, Step(note)
        self._current.step = self._last = step
        try:
            yield step
        finally:
            self._current.step, step.known = outer, None

    def exchange(self, devices: Sequence[torch.device]) -> Exchange:
        """What one region gives to the cards and gets back, as part of this thread's forward.

        Outside of one (where a checkpoint repeats a forward) it counts with the forward that was begun last.
        """
        step = self._current.step or self._last
        return Exchange(devices) if step is None else Exchange(devices, step.count, step.known)


UNCOUNTED = Traffic()
"""of what is no part of a model's steps: proofs, probes"""
