"""From a profile and a topology to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from poolrt.errors import ConfigurationError, PlanError
from poolrt.planning.assembled import notes_after, notes_before, plan_of
from poolrt.planning.candidate import Candidate
from poolrt.planning.costs import CALL_OVERHEAD_S
from poolrt.planning.counts import MicroBatches
from poolrt.planning.infeasible import host_reason, nearest_miss, reason
from poolrt.planning.largest import largest_batch_of
from poolrt.planning.limits import Limits, OutputCard, Spill, host_limit
from poolrt.planning.options import PlanOptions
from poolrt.planning.plan import Plan
from poolrt.planning.profile import Profile
from poolrt.planning.spill_search import SpillSearch
from poolrt.planning.split_facts import SplitFacts
from poolrt.planning.stages import Stages, joined, scaled_stages
from poolrt.planning.task import Task
from poolrt.topology.topology import Topology

NEAR_TIE = 1.02
"""fewer micro-batches are taken if the step is predicted to be longer by no more than this factor"""


def make_plan(
    profile: Profile,
    topology: Topology,
    *,
    micro_batches: MicroBatches = "auto",
    schedule: str = "auto",
    optimizer: str = "adamw",
    batch_size: int | None = None,
    splittable: bool = True,
    why_not_split: str = "",
    output_card: OutputCard = "last",
    reserve_fraction: float | None = None,
    call_overhead_s: float = CALL_OVERHEAD_S,
    spill: Spill = "never",
    host_bytes: int = 0,
    stages: Stages | None = None,
) -> Plan:
    """The plan with the least predicted step time among those that fit every card; it uses all cards it can.

    Args:
        profile: what was measured.
        topology: the cards.
        micro_batches: a number, or "auto" to choose the fastest that fits.
        schedule: "auto" is "gpipe".
        optimizer: a name that `planning.optimizers` knows; "none" for inference.
        batch_size: samples in the batch to plan for; None means the measured one.
        splittable: False if splitting the batch would change the model's result; then there is one micro-batch.
        why_not_split: the reason for that, half a sentence; it ends up in the plan's notes.
        output_card: where whole outputs are put together: "last" (the last call's card), "host", or a card's index.
        reserve_fraction: part of each card's memory to leave free; None means 5 % of a GPU and nothing of other cards.
        call_overhead_s: fixed cost of one call of one micro-batch, forward or backward, in seconds.
        spill: what to do if nothing fits: "never" says so; "auto" takes from the pool as little as needed, on other
            cards and then on the host; a number does too, with that many bytes on the host at most.
        host_bytes: what the host gives to "auto".
        stages: cards that run the same layers together, in the order of the line; None: every card by itself.

    Returns:
        A plan. Where nothing fits it has `feasible=False`, the reason, and the placement that comes closest.

    Raises:
        ConfigurationError: if an argument makes no sense.
        PlanError: if the profile has no calls.
    """
    if schedule not in ("auto", "gpipe"):
        raise ConfigurationError(f'schedule is "auto" or "gpipe", not {schedule!r}')
    limits = Limits(
        optimizer=optimizer,
        output_card=output_card,
        reserve_fraction=reserve_fraction,
        call_overhead_s=call_overhead_s,
        host_bytes=host_limit(spill, host_bytes),
    )
    limits.check(topology)
    asked = _for_batch(profile, batch_size)
    task = Task(
        profile=asked,
        topology=topology,
        limits=limits,
        splittable=splittable,
        why_not_split=why_not_split,
        stages=None if stages is None else scaled_stages(stages, asked.batch_size),
    )
    return replace(_planned(task, micro_batches), spill=spill)


def plan_stages(
    facts: Sequence[SplitFacts],
    topology: Topology,
    stages: Sequence[Sequence[int]],
    **options: Unpack[PlanOptions],
) -> Plan:
    """As `make_plan`, where the cards of a stage run its layers together, and the order of the stages is given.

    The layers are cut over the stages as they are over cards. A stage's layers fit if every one of its cards can hold
    its pieces of them, the lead card also everything that is not split. A stage stands where `make_plan` speaks of a
    card: "last" is the lead card of the last call's stage; every card spills of its own pieces what does not fit it.

    Args:
        facts: for each stage what was found out about the model with its shares; stages with equal shares may give the
            same object. A stage of one card has `SplitFacts.whole`.
        topology: the cards.
        stages: for each stage the indices of its cards, the lead card first. A card in none is left out.
        options: what `make_plan` takes.

    Returns:
        A plan with `stages`; its cards name the layers of their stage. Where nothing fits it has `feasible=False`, the
        reason, and the placement that comes closest.

    Raises:
        ConfigurationError: if an argument makes no sense.
        PlanError: if the profile has no calls.
    """
    line = joined(facts, stages, topology)
    return make_plan(line[0].facts.profile, topology, stages=line, **options)


def _planned(task: Task, micro_batches: MicroBatches) -> Plan:
    counts = task.counts(micro_batches)
    notes = list(notes_before(task, micro_batches))
    chosen = _best(task, counts)
    if chosen is None:
        return _infeasible(task, counts, notes)
    return plan_of(chosen, task, [*notes, *notes_after(chosen, task, counts)])


def _best(task: Task, counts: Sequence[int]) -> Candidate | None:
    """The best of what fits without spilling; if nothing does, the fastest that fits with it."""
    found = [candidate for count in counts if (candidate := task.search(count).best())]
    if found:
        return _least_split_of_the_fastest(found)
    if task.limits.host_bytes is None:
        return None
    return _best_spilling([task.spill_search(count) for count in counts])


def _best_spilling(searches: Sequence[SpillSearch]) -> Candidate | None:
    """Only the best of the first cuts is improved: that is where most of the time goes."""
    cuts = [(cut, search) for search in searches if (cut := search.first_cut()) and cut.fits_host]
    if not cuts:
        return None
    cut, search = min(cuts, key=lambda found: found[0].rank)
    return search.improved(cut).candidate


def _for_batch(profile: Profile, batch_size: int | None) -> Profile:
    if not profile.calls:
        raise PlanError("the profile has no calls: run the model once on a sample so that there is something to place")
    if batch_size is None or batch_size == profile.batch_size:
        return profile
    if batch_size < 1:
        raise ConfigurationError(f"batch_size is a number of samples from 1 on, not {batch_size}")
    return profile.scaled(batch_size)


def _least_split_of_the_fastest(found: Sequence[Candidate]) -> Candidate:
    """Predictions are no better than NEAR_TIE, and fewer micro-batches have less to go wrong."""
    fastest_s = min(candidate.time.step_s for candidate in found)
    return next(candidate for candidate in found if candidate.time.step_s <= fastest_s * NEAR_TIE)


def _infeasible(task: Task, counts: Sequence[int], notes: Sequence[str]) -> Plan:
    """The plan that comes closest, with the reason why it is not enough."""
    batch = task.profile.batch_size
    largest = largest_batch_of(task, limit=batch - 1)
    if task.limits.host_bytes is not None:
        cuts = [cut for count in counts if (cut := task.spill_search(count).first_cut())]
        if cuts:
            least = min((cut.candidate for cut in cuts), key=lambda candidate: candidate.host_bytes)
            why = host_reason(least, host_bytes=task.limits.host_bytes, batch_size=batch, largest_batch=largest)
            return plan_of(least, task, notes, why)
    search = task.search if task.limits.host_bytes is None else task.spill_search
    misses = [nearest_miss(search(count)) for count in counts]
    closest = min(misses, key=lambda miss: miss.scale)
    others = [count for count in task.counts("auto") if count not in counts]
    sentence = reason(
        closest,
        task.topology.cards,
        batch_size=batch,
        largest_batch=largest,
        other_counts=[count for count in others if task.is_feasible(count)],
    )
    return plan_of(closest.candidate, task, notes, sentence)
