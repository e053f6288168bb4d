"""What a layer's call costs a stage in seconds: less than one card where its cards work side by side.

    one card          |#### region ########################|## rest ##|
    two cards, lead   |cast|#### half ####|sum|## rest ##|             cast: what the region reads goes to every card
         the other    |    |#### half ####|                            sum: what the cards made of it comes back

Cards work side by side where each has a device of its own. A virtual card computes in the thread that asks it to: in
forward these take turns, and in the backward of a lane too, since the lane walks it alone. GPUs compute behind the
caller's back, but one thread starts the work of all: a region takes no less than starting its operators on every card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from poolrt.planning.limits import Limits
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.profile import CallFacts, Profile
from poolrt.planning.spill_time import reading_of_step_s, slowed
from poolrt.planning.split_facts import RegionCall
from poolrt.planning.stages import Stage, Stages
from poolrt.planning.step_time import StepTime, predict_step
from poolrt.topology.route import Route, route
from poolrt.topology.topology import Topology

OPERATION_S = 6e-6
"""starting one operator on a GPU from Python: assumed, eager torch takes 4 to 10 us on the machines people have"""


@dataclass(frozen=True, kw_only=True)
class TimedStage:
    """A stage with its seconds, for one number of micro-batches."""

    profile: Profile
    """with each call as long as the stage is busy with it"""
    work: tuple[tuple[float, ...], ...]
    """for each layer's call, which part of it each card of the stage computes"""


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """How fast the cards of one stage work together."""

    routes: tuple[Route, ...]
    """between the lead card and every other, there and back"""
    micro_batches: int
    call_overhead_s: float
    takes_turns: bool
    starts: int
    """operators that one thread starts, over all cards, for each one of a region's forward on one card"""

    @property
    def cards(self) -> int:
        return 1 + len(self.routes) // 2

    def computing_s(self, region: RegionCall, seconds: float) -> float:
        """Of a region that one card is busy with for so long, in one direction."""
        hooks_s = self.micro_batches * self.cards * self.call_overhead_s
        if self.takes_turns:
            return seconds + hooks_s
        starting_s = self.micro_batches * self.starts * region.operations * OPERATION_S
        return max(max(region.shares) * seconds, starting_s + hooks_s)

    def crossing_s(self, region: RegionCall) -> float:
        """What it is given to all cards, what they make of it back; backward the same the other way round."""
        given_s = self._to_all_s(region.copied_nbytes)
        return given_s + (0.0 if region.in_parts else self._to_all_s(region.output_nbytes))

    def _to_all_s(self, nbytes: int) -> float:
        """One tensor from the lead card to all others, or one from each of them: in one step, or by pieces in two.

        Whole tensors leave the lead card one after another; in two steps each other card passes its piece on. Over
        the slowest of the links.
        """
        if not nbytes or not self.routes:
            return 0.0
        others = self.cards - 1
        way = max(self.routes, key=lambda link: link.copy_s(nbytes))
        one_step_s = way.copy_s(others * nbytes, self.micro_batches)
        return min(one_step_s, way.copy_s(2 * others / self.cards * nbytes, 2 * self.micro_batches))


def timed_stages(
    stages: Stages, topology: Topology, *, micro_batches: int, call_overhead_s: float
) -> tuple[TimedStage, ...]:
    """How long every stage is busy with each call; see `timed`. Stages that are alike share a profile's seconds."""
    clocks: dict[tuple[object, ...], TimedStage] = {}
    for stage in stages:
        if (key := _alike(stage, topology)) not in clocks:
            clocks[key] = timed(
                stage,
                topology,
                micro_batches=micro_batches,
                call_overhead_s=call_overhead_s,
                alone=len(stages) == 1,
            )
    return tuple(clocks[_alike(stage, topology)] for stage in stages)


def _alike(stage: Stage, topology: Topology) -> tuple[object, ...]:
    """What the seconds of a stage depend on."""
    if len(stage.cards) == 1:
        return (id(stage.facts),)
    ways = (route(topology, *pair) for card in stage.cards[1:] for pair in ((stage.lead, card), (card, stage.lead)))
    kinds = (topology.cards[card].kind for card in stage.cards)
    return id(stage.facts), *((way.bytes_per_s, way.latency_s) for way in ways), *kinds


def timed(stage: Stage, topology: Topology, *, micro_batches: int, call_overhead_s: float, alone: bool) -> TimedStage:
    """How long the stage is busy with each call, and each of its cards.

    Args:
        stage: the cards, and what was measured of the model.
        topology: all cards.
        micro_batches: how many parts the batch is cut into.
        call_overhead_s: fixed cost of a region on one card, for each micro-batch and direction.
        alone: whether there is no other stage; then a whole batch runs in the caller's thread, and in backward every
            card has a thread of its own.
    """
    profile = stage.facts.profile
    if len(stage.cards) == 1:
        return TimedStage(profile=profile, work=((1.0,),) * len(profile.calls))
    paces = _paces(stage, topology, micro_batches, call_overhead_s, in_lanes=not alone or micro_batches > 1)
    regions: list[list[RegionCall]] = [[] for _ in profile.calls]
    for region in stage.facts.calls:
        regions[region.call].append(region)
    calls = [_timed_call(call, inside, paces) for call, inside in zip(profile.calls, regions, strict=True)]
    work = [_work(call, inside, len(stage.cards)) for call, inside in zip(profile.calls, regions, strict=True)]
    return TimedStage(profile=replace(profile, calls=tuple(calls)), work=tuple(work))


def _split_parts(call: CallFacts, regions: Sequence[RegionCall]) -> list[float]:
    """For each region, which part of the call's seconds it is; the watch that saw regions may have slowed them."""
    total_s = max(call.forward_s, sum(region.forward_s for region in regions))
    return [region.forward_s / total_s if total_s else 0.0 for region in regions]


def _paces(
    stage: Stage, topology: Topology, micro_batches: int, call_overhead_s: float, *, in_lanes: bool
) -> tuple[_Pace, _Pace]:
    """Of forward, and of backward: that starts twice the operators, in a lane one thread those of all cards."""
    cards = [topology.cards[card] for card in stage.cards]
    shared = len({card.device for card in cards}) < len(cards)
    virtual = any(card.kind == "virtual" for card in cards)
    ways = tuple(
        route(topology, *pair) for card in stage.cards[1:] for pair in ((stage.lead, card), (card, stage.lead))
    )
    forward = _Pace(
        routes=ways,
        micro_batches=micro_batches,
        call_overhead_s=call_overhead_s,
        takes_turns=shared or virtual,
        starts=len(cards),
    )
    takes_turns = shared or (virtual and in_lanes)
    return forward, replace(forward, takes_turns=takes_turns, starts=2 * len(cards) if in_lanes else 2)


def _timed_call(call: CallFacts, regions: Sequence[RegionCall], paces: Sequence[_Pace]) -> CallFacts:
    parts = _split_parts(call, regions)
    forward_s, backward_s = (
        seconds * (1 - sum(parts))
        + sum(
            pace.computing_s(region, part * seconds) + pace.crossing_s(region)
            for region, part in zip(regions, parts, strict=True)
        )
        for seconds, pace in zip((call.forward_s, call.backward_s), paces, strict=True)
    )
    return replace(call, forward_s=forward_s, backward_s=backward_s)


def _work(call: CallFacts, regions: Sequence[RegionCall], cards: int) -> tuple[float, ...]:
    parts = _split_parts(call, regions)
    inside = [
        sum(part * region.shares[card] for region, part in zip(regions, parts, strict=True)) for card in range(cards)
    ]
    return 1 - sum(parts) + inside[0], *inside[1:]


def predict_stages(
    stages: Stages,
    topology: Topology,
    limits: Limits,
    *,
    micro_batches: int,
    stage_of: Mapping[str, int],
    waiting_s: Sequence[Mapping[str, float]] = (),
) -> StepTime:
    """The predicted time of a GPipe step over stages; each admits one micro-batch at a time, as a card alone does.

    Args:
        stages: the cards, and what was measured.
        topology: all cards.
        limits: optimizer and overhead.
        micro_batches: how many parts the batch is cut into.
        stage_of: layer name to the position of its stage, for every layer.
        waiting_s: for each card, by layer, how much longer each call takes each way because of what lies elsewhere;
            a stage waits for the slowest of its cards.
    """
    clocks = timed_stages(stages, topology, micro_batches=micro_batches, call_overhead_s=limits.call_overhead_s)
    profile = stages[0].facts.profile
    where = [stage_of[call.layer] for call in profile.calls]
    on_stages = replace(profile, calls=tuple(clocks[stage].profile.calls[index] for index, stage in enumerate(where)))
    longest_s: dict[str, float] = {}
    for layer, seconds in (pair for card_s in waiting_s for pair in card_s.items()):
        longest_s[layer] = max(longest_s.get(layer, 0.0), seconds)
    trains = optimizer_cost(limits.optimizer).trains
    time = predict_step(
        slowed(on_stages, longest_s),
        topology,
        {layer: stages[stage].lead for layer, stage in stage_of.items()},
        micro_batches=micro_batches,
        call_overhead_s=limits.call_overhead_s,
        backward=trains,
    )
    busy_s = list(time.busy_s)
    for index, (stage, clock) in enumerate(zip(stages, clocks, strict=True)):
        if len(stage.cards) > 1:
            calls = [call for call, at in enumerate(where) if at == index]
            own_s = _own_s(stage, clock, calls, trains=trains)
            for card, seconds in zip(stage.cards, own_s, strict=True):
                waits = reading_of_step_s(profile, waiting_s[card], trains=trains) if waiting_s else 0.0
                busy_s[card] = seconds + waits
    return StepTime(step_s=time.step_s, busy_s=tuple(busy_s))


def _own_s(stage: Stage, clock: TimedStage, calls: Sequence[int], *, trains: bool) -> list[float]:
    """For each card of the stage, how long it computes itself in these calls."""
    profile = stage.facts.profile
    whole_s = [profile.calls[call].forward_s + trains * profile.calls[call].backward_s for call in calls]
    return [
        sum(clock.work[call][position] * seconds for call, seconds in zip(calls, whole_s, strict=True))
        for position in range(len(stage.cards))
    ]
