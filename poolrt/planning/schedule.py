"""GPipe's order of work: which card admits which micro-batch when.

Every micro-batch goes through the same path of cards, forward, and then the reversed path, backward. Within a phase the
cards work like a production line (Huang et al. 2019, "GPipe", section 2.3):

    card 0:  F0 F1 F2 F3
    card 1:     F0 F1 F2 F3

A path may come back to a card: layers that are called again, encoder and decoder interleaved. A card then has several
visits of each micro-batch to admit, and takes the one that has waited longest (list scheduling, Graham 1966):

    path 0 1 0 1, two micro-batches

    card 0:  F0 F1 f0 f1
    card 1:     F0 F1 f0 f1          (small: the second visit)

The order is computed once and then kept by the cards, whatever the real durations: that makes a run repeatable.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poolrt.errors import ConfigurationError

Phase = Literal["F", "B"]

_ACTION = re.compile(r"(?P<card>\d+)(?:\.(?P<visit>\d+))?(?P<phase>[FB])(?P<micro_batch>\d+)")


@dataclass(frozen=True, order=True)
class Action:
    """One micro-batch on one card, once. Prints as `2F0`; a later visit as `2.1F0`."""

    phase: Phase
    card: int
    visit: int
    """how often the path was on this card before, counted along the path of the phase"""
    micro_batch: int

    def __str__(self) -> str:
        visit = f".{self.visit}" if self.visit else ""
        return f"{self.card}{visit}{self.phase}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
            ConfigurationError: if nothing prints so.
        """
        match = _ACTION.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} is no action; write card, phase, micro-batch, such as 2F0 or 2.1B3")
        phase: Phase = "F" if match["phase"] == "F" else "B"
        return cls(phase, int(match["card"]), int(match["visit"] or 0), int(match["micro_batch"]))


@dataclass(frozen=True, kw_only=True)
class Slot:
    """When an action runs, in seconds from the start of its phase."""

    action: Action
    start_s: float
    end_s: float


def gpipe_timeline(
    path: Sequence[int], micro_batches: int, *, duration_s: Sequence[float] | None = None, phase: Phase = "F"
) -> tuple[Slot, ...]:
    """All actions of one phase with their predicted times, in order of start.

    Args:
        path: cards in the order in which a micro-batch visits them; for the backward phase the reversed one.
        micro_batches: how many micro-batches go through the path.
        duration_s: seconds that one micro-batch takes at each position of the path; None means equal ones.
        phase: what the actions are called.

    Raises:
        ConfigurationError: if there is no micro-batch, or the durations do not fit the path.
    """
    durations = tuple(duration_s) if duration_s is not None else (1.0,) * len(path)
    if micro_batches < 1 or len(durations) != len(path) or any(duration < 0 for duration in durations):
        raise ConfigurationError(
            f"a schedule needs a micro-batch and one duration per position of the path, got {micro_batches} "
            f"micro-batches, path {tuple(path)} and durations {durations}"
        )
    visits = [tuple(path[:position]).count(card) for position, card in enumerate(path)]
    return tuple(
        Slot(action=Action(phase, path[position], visits[position], micro_batch), start_s=start_s, end_s=end_s)
        for start_s, end_s, position, micro_batch in _list_schedule(path, durations, micro_batches)
    )


def _list_schedule(
    path: Sequence[int], durations: Sequence[float], micro_batches: int
) -> list[tuple[float, float, int, int]]:
    """(start, end, position, micro-batch) of every hop, by simulating the cards: each takes what became ready first."""
    waiting: dict[int, list[tuple[float, int, int]]] = {
        card: [] for card in path
    }  # (ready since, micro-batch, position)
    arrivals = [(0.0, micro_batch, 0) for micro_batch in range(micro_batches)]
    free = set(path)
    running: list[tuple[float, int, int]] = []  # (end, micro-batch, position)
    done: list[tuple[float, float, int, int]] = []
    now = 0.0
    while len(done) < len(path) * micro_batches:
        for arrival in arrivals:
            heapq.heappush(waiting[path[arrival[2]]], arrival)
        for card in sorted(free):
            if waiting[card]:
                _, micro_batch, position = heapq.heappop(waiting[card])
                end = now + durations[position]
                heapq.heappush(running, (end, micro_batch, position))
                done.append((now, end, position, micro_batch))
                free.discard(card)
        arrivals = []
        now = running[0][0]
        while running and running[0][0] == now:
            _, micro_batch, position = heapq.heappop(running)
            free.add(path[position])
            if position + 1 < len(path):
                arrivals.append((now, micro_batch, position + 1))
    return done


def gpipe_order(
    path: Sequence[int], micro_batches: int, *, duration_s: Sequence[float] | None = None, phase: Phase = "F"
) -> dict[int, tuple[Action, ...]]:
    """For each card of the path, the order in which it admits its actions of one phase.

    The orders of all cards together can be executed by any timing of the hops: they come from one run of the line.

    Args:
        path: cards in the order in which a micro-batch visits them; for the backward phase the reversed one.
        micro_batches: how many micro-batches go through the path.
        duration_s: seconds that one micro-batch takes at each position of the path; None means equal ones.
        phase: what the actions are called.

    Raises:
        ConfigurationError: if there is no micro-batch, or the durations do not fit the path.
    """
    order: dict[int, list[Action]] = {card: [] for card in path}
    for slot in gpipe_timeline(path, micro_batches, duration_s=duration_s, phase=phase):
        order[slot.action.card].append(slot.action)
    return {card: tuple(actions) for card, actions in order.items()}


def makespan_s(path: Sequence[int], duration_s: Sequence[float], micro_batches: int) -> float:
    """Predicted seconds of one phase, from the first start to the last end.

    On a path without repeats this is the sum of the durations plus (micro_batches - 1) times the longest.

    Args:
        path: cards in the order in which a micro-batch visits them.
        duration_s: seconds that one micro-batch takes at each position of the path.
        micro_batches: how many micro-batches go through the path.

    Raises:
        ConfigurationError: if there is no micro-batch, or the durations do not fit the path.
    """
    return max((slot.end_s for slot in gpipe_timeline(path, micro_batches, duration_s=duration_s)), default=0.0)
