"""The gate before each card: it admits one lane at a time, in the order of the schedule.

    card 0:  F0 F1 F2 F3                 the order in which a card admits (visit, micro-batch)
    card 1:     F0 F1 F2 F3              IS the schedule; lanes only ask and wait

A lane whose path differs from the schedule's (data-dependent depth) has no place in the order. It is admitted when
every running lane waits and every card is free: then nothing else can move, and the smallest ticket goes. That moment
does not depend on timing, so the order of admissions stays deterministic.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Ticket(NamedTuple):
    """A lane's claim to a card: the how-manieth visit of which micro-batch."""

    visit: int
    micro_batch: int


class Aborted(BaseException):
    """Another lane failed; this one stops. Never reaches the user."""


@dataclass
class Admission:
    """One stay on a card, for timelines. Seconds are of time.perf_counter."""

    card: int
    ticket: Ticket
    start_s: float
    end_s: float = 0.0


@dataclass
class _Gate:
    order: deque[Ticket]
    holder: Ticket | None = None
    waiting: dict[Ticket, threading.Event] = field(default_factory=dict)


class Turnstile:
    """Admits `lanes` lanes to cards in the given order; one phase (forward or backward) of one step."""

    def __init__(self, order: Mapping[int, Sequence[Ticket]], lanes: int) -> None:
        self._gates = {card: _Gate(deque(tickets)) for card, tickets in order.items()}
        self._lock = threading.Lock()
        self._running = lanes
        self._finished: set[int] = set()
        self._passed: dict[int, set[Ticket]] = {card: set() for card in order}
        self._aborted = False
        self.admissions: list[Admission] = []

    def acquire(self, card: int, ticket: Ticket) -> Admission:
        """Wait for `card`.

        Raises:
            Aborted: if another lane failed meanwhile.
        """
        admitted = threading.Event()
        with self._lock:
            if self._aborted:
                raise Aborted
            gate = self._gates.setdefault(card, _Gate(deque()))
            self._passed.setdefault(card, set())
            gate.waiting[ticket] = admitted
            self._running -= 1
            self._dispatch()
        admitted.wait()
        if self._aborted:
            raise Aborted
        admission = Admission(card, ticket, time.perf_counter())
        self.admissions.append(admission)
        return admission

    def release(self, admission: Admission) -> None:
        """Leave the card; the next lane in order may enter."""
        admission.end_s = time.perf_counter()
        with self._lock:
            self._gates[admission.card].holder = None
            self._passed[admission.card].add(admission.ticket)
            self._dispatch()

    def finish(self, micro_batch: int) -> None:
        """The lane asks for no card any more; its places in the order are skipped."""
        with self._lock:
            self._finished.add(micro_batch)
            self._running -= 1
            self._dispatch()

    def abort(self) -> None:
        """Wake every waiting lane with Aborted."""
        with self._lock:
            self._aborted = True
            for gate in self._gates.values():
                for admitted in gate.waiting.values():
                    admitted.set()
                gate.waiting.clear()

    def _dispatch(self) -> None:
        for card, gate in self._gates.items():
            self._drop_spent(card, gate)
            if gate.holder is None and gate.order and gate.order[0] in gate.waiting:
                self._admit(gate, gate.order.popleft())
        if self._running == 0 and all(gate.holder is None for gate in self._gates.values()):
            self._admit_off_schedule()

    def _drop_spent(self, card: int, gate: _Gate) -> None:
        while gate.order and (gate.order[0].micro_batch in self._finished or gate.order[0] in self._passed[card]):
            gate.order.popleft()

    def _admit_off_schedule(self) -> None:
        waiting = [(ticket, card) for card, gate in self._gates.items() for ticket in gate.waiting]
        if waiting:
            ticket, card = min(waiting)
            self._admit(self._gates[card], ticket)

    def _admit(self, gate: _Gate, ticket: Ticket) -> None:
        gate.holder = ticket
        self._running += 1
        gate.waiting.pop(ticket).set()
