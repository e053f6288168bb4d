"""Predicted seconds of one step, and how long each card of it is at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolrt.planning.costs import accumulate_s
from poolrt.planning.profile import CallFacts, Profile
from poolrt.planning.schedule import makespan_s
from poolrt.topology.route import route
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One forward and backward of the whole batch. Of the optimizer's step only waiting for spilled bytes is in it."""

    step_s: float
    busy_s: tuple[float, ...]
    """for each card, computing and waiting for copies to it"""


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """Consecutive calls on one card."""

    card: int
    calls: tuple[CallFacts, ...]


def predict_step(
    profile: Profile,
    topology: Topology,
    card_of: Mapping[str, int],
    *,
    micro_batches: int,
    call_overhead_s: float,
    backward: bool = True,
) -> StepTime:
    """The predicted time of a GPipe step.

    A card is busy from taking a micro-batch's tensors over the link until its last call has ended, so a copy lengthens
    the visit that it leads to. Cards that share a device work one after another: the step is never shorter than what
    all of them compute.

    Args:
        profile: what was measured.
        topology: the cards.
        card_of: layer name to card index, for every layer.
        micro_batches: how many parts the batch is cut into.
        call_overhead_s: fixed cost of one call of one micro-batch, forward or backward, in seconds.
        backward: False for inference.
    """
    visits = _visits(profile, card_of)
    forward_s = _durations(visits, topology, micro_batches, call_overhead_s, backward=False)
    phases = [([visit.card for visit in visits], forward_s)]
    if backward:
        backward_s = _durations(visits, topology, micro_batches, call_overhead_s, backward=True)
        phases.append(([visit.card for visit in reversed(visits)], backward_s[::-1]))
    busy_s = [0.0] * len(topology.cards)
    for path, durations in phases:
        for card, duration in zip(path, durations, strict=True):
            busy_s[card] += duration * micro_batches
    step_s = sum(makespan_s(path, durations, micro_batches) for path, durations in phases)
    return StepTime(step_s=max(step_s, _busiest_device_s(topology, busy_s)), busy_s=tuple(busy_s))


def _visits(profile: Profile, card_of: Mapping[str, int]) -> list[_Visit]:
    visits: list[_Visit] = []
    for call in profile.calls:
        card = card_of[call.layer]
        if visits and visits[-1].card == card:
            visits[-1] = _Visit(card=card, calls=(*visits[-1].calls, call))
        else:
            visits.append(_Visit(card=card, calls=(call,)))
    return visits


def _durations(
    visits: list[_Visit], topology: Topology, micro_batches: int, call_overhead_s: float, *, backward: bool
) -> list[float]:
    """Seconds of each visit of one micro-batch, in the order of forward.

    Forward takes the output of the visit before; backward takes, from the visit after, the gradient of its own output.
    """
    durations = []
    for index, visit in enumerate(visits):
        computed_s = sum(call.backward_s if backward else call.forward_s for call in visit.calls) / micro_batches
        if backward:
            computed_s += sum(accumulate_s(call, micro_batches) for call in visit.calls)
        neighbour = index + 1 if backward else index - 1
        crossing_s = 0.0
        if 0 <= neighbour < len(visits):
            handed = visit.calls[-1] if backward else visits[neighbour].calls[-1]
            way = route(topology, visits[neighbour].card, visit.card)
            crossing_s = way.copy_s(handed.output_nbytes / micro_batches)
        durations.append(computed_s + crossing_s + len(visit.calls) * call_overhead_s)
    return durations


def _busiest_device_s(topology: Topology, busy_s: list[float]) -> float:
    by_device: dict[str, float] = {}
    for card, seconds in zip(topology.cards, busy_s, strict=True):
        by_device[card.device] = by_device.get(card.device, 0.0) + seconds
    return max(by_device.values())
