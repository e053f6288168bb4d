"""From a profile and a topology to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from poolrt.errors import ConfigurationError, PlanError
from poolrt.planning.candidate import Candidate, evaluate
from poolrt.planning.costs import CALL_OVERHEAD_S
from poolrt.planning.counts import MicroBatches, micro_batch_counts
from poolrt.planning.infeasible import host_reason, nearest_miss, reason
from poolrt.planning.largest import largest_batch
from poolrt.planning.limits import Limits, OutputCard, Spill, host_limit
from poolrt.planning.plan import CardPlan, Plan
from poolrt.planning.profile import Profile
from poolrt.planning.search import Search
from poolrt.planning.spill_search import SpillSearch, is_feasible
from poolrt.topology.topology import Topology
from poolrt.units import format_seconds

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
    profile = _for_batch(profile, batch_size)
    counts = micro_batch_counts(
        micro_batches, batch_size=profile.batch_size, cards=len(topology.cards), splittable=splittable
    )
    notes = list(_notes_on_counts(micro_batches, profile.batch_size, splittable, why_not_split))
    chosen = _best(profile, topology, limits, counts)
    if chosen is None:
        return replace(_infeasible(profile, topology, limits, counts, splittable, notes), spill=spill)
    notes += _notes_on_cards(chosen, profile, topology)
    notes += _notes_on_one_card(chosen, profile, topology, limits, counts)
    return replace(_plan(chosen, profile, topology, limits, notes), spill=spill)


def _best(profile: Profile, topology: Topology, limits: Limits, counts: Sequence[int]) -> Candidate | None:
    """The best of what fits without spilling; if nothing does, the fastest that fits with it."""
    found = [candidate for count in counts if (candidate := Search(profile, topology, limits, count).best())]
    if found:
        return _least_split_of_the_fastest(found)
    if limits.host_bytes is None:
        return None
    return _best_spilling([SpillSearch(profile, topology, limits, count) for count in counts])


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


def _plan(
    chosen: Candidate, profile: Profile, topology: Topology, limits: Limits, notes: Sequence[str], reason: str = ""
) -> Plan:
    cards = tuple(
        CardPlan(
            index=card.index,
            layers=tuple(layer.name for layer in profile.layers if chosen.card_of[layer.name] == card.index),
            predicted_bytes=chosen.predicted_bytes[card.index],
            capacity_bytes=card.memory_bytes,
            predicted_busy_s=chosen.time.busy_s[card.index],
            **_pooling(chosen, profile, card.index),
        )
        for card in topology.cards
    )
    return Plan(
        model=profile.model,
        topology=topology.fingerprint(),
        batch_size=profile.batch_size,
        micro_batches=chosen.micro_batches,
        schedule="gpipe",
        optimizer=limits.optimizer,
        cards=cards,
        predicted_step_s=chosen.time.step_s,
        notes=tuple(notes),
        feasible=not reason,
        reason=reason,
        host_spill_bytes=chosen.host_bytes,
    )


def _pooling(chosen: Candidate, profile: Profile, card: int) -> dict[str, Any]:
    """What a card's plan says of the pool."""
    if not chosen.spills:
        return {}
    spill = chosen.spills[card]
    return {
        "spilled_layers": tuple(profile.layers[position].name for position, _ in spill.layers),
        "spills_optimizer": spill.pooled.optimizer.total + spill.pooled.temporaries.total > 0,
        "pooled_bytes": spill.pooled,
        "pool_limit_bytes": spill.limit,
        "predicted_spill_s": chosen.spill_s[card],
    }


def _infeasible(
    profile: Profile,
    topology: Topology,
    limits: Limits,
    counts: Sequence[int],
    splittable: bool,
    notes: Sequence[str],
) -> Plan:
    """The plan that comes closest, with the reason why it is not enough."""
    batch = profile.batch_size
    largest = largest_batch(profile, topology, limit=batch - 1, splittable=splittable, limits=limits)
    if limits.host_bytes is not None:
        cuts = [cut for count in counts if (cut := SpillSearch(profile, topology, limits, count).first_cut())]
        if cuts:
            least = min((cut.candidate for cut in cuts), key=lambda candidate: candidate.host_bytes)
            why = host_reason(least, host_bytes=limits.host_bytes, batch_size=batch, largest_batch=largest)
            return _plan(least, profile, topology, limits, notes, why)
    kind = Search if limits.host_bytes is None else SpillSearch
    misses = [nearest_miss(kind(profile, topology, limits, count)) for count in counts]
    closest = min(misses, key=lambda miss: miss.scale)
    any_count = micro_batch_counts("auto", batch_size=batch, cards=len(topology.cards), splittable=splittable)
    others = [count for count in any_count if count not in counts]
    sentence = reason(
        closest,
        topology.cards,
        batch_size=batch,
        largest_batch=largest,
        other_counts=[count for count in others if is_feasible(profile, topology, limits, count)],
    )
    return _plan(closest.candidate, profile, topology, limits, notes, sentence)


def _notes_on_counts(requested: MicroBatches, batch_size: int, splittable: bool, why_not_split: str) -> Iterator[str]:
    if not splittable:
        because = f": {why_not_split}" if why_not_split else ""
        yield f"The batch is not split, so the cards work one after another{because}."
    elif isinstance(requested, int) and requested > batch_size:
        yield f"{requested} micro-batches were asked for, but the batch has {batch_size} samples: one in each is used."


def _notes_on_cards(chosen: Candidate, profile: Profile, topology: Topology) -> Iterator[str]:
    used = set(chosen.card_of.values())
    for card in topology.cards:
        if card.index not in used:
            few = len(profile.layers) < len(topology.cards)
            why = f"the model has only {len(profile.layers)} layers" if few else "no layer fits beside the others"
            yield f"Card {card.index} holds no layer: {why}."


def _notes_on_one_card(
    chosen: Candidate, profile: Profile, topology: Topology, limits: Limits, counts: Sequence[int]
) -> Iterator[str]:
    """The user asked for pooling and gets it, but is told where it costs time."""
    usable = limits.usable_bytes(topology)
    largest = usable.index(max(usable))
    everything_there = {layer.name: largest for layer in profile.layers}
    for count in counts if len(usable) > 1 else ():
        alone = evaluate(profile, topology, limits, micro_batches=count, card_of=everything_there)
        if alone.predicted_bytes[largest].total <= usable[largest] and alone.time.step_s < chosen.time.step_s:
            yield (
                f"The model fits card {largest} alone and is predicted to be faster there: "
                f"{format_seconds(alone.time.step_s)} against {format_seconds(chosen.time.step_s)} a step."
            )
            return
