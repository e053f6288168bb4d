"""From the candidate that was chosen to the plan: what each card does, and sentences about what is not as usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from poolrt.planning.candidate import Candidate, evaluate
from poolrt.planning.counts import MicroBatches
from poolrt.planning.plan import CardPlan, Plan
from poolrt.planning.profile import Profile
from poolrt.planning.task import Task
from poolrt.topology.topology import Card
from poolrt.units import format_seconds


def plan_of(chosen: Candidate, task: Task, notes: Sequence[str], reason: str = "") -> Plan:
    """The plan that says what was chosen; with a reason, one that is not feasible."""
    return Plan(
        model=task.profile.model,
        topology=task.topology.fingerprint(),
        batch_size=task.profile.batch_size,
        micro_batches=chosen.micro_batches,
        schedule="gpipe",
        optimizer=task.limits.optimizer,
        cards=tuple(_card_plan(chosen, task.profile, card) for card in task.topology.cards),
        predicted_step_s=chosen.time.step_s,
        notes=tuple(notes),
        feasible=not reason,
        reason=reason,
        host_spill_bytes=chosen.host_bytes,
        tensor_parallel=max(map(len, chosen.stages)),
        stages=chosen.stages if task.stages is not None else (),
        split_modules=tuple(dict.fromkeys(_split_modules(chosen, task))),
    )


def _split_modules(chosen: Candidate, task: Task) -> Iterator[str]:
    """Names of those in the layers of their own stage."""
    for index, stage in enumerate(task.stages or ()):
        for region in stage.facts.calls:
            if chosen.stage_of[task.profile.calls[region.call].layer] == index:
                yield region.module


def _card_plan(chosen: Candidate, profile: Profile, card: Card) -> CardPlan:
    stage = next((index for index, cards in enumerate(chosen.stages) if card.index in cards), None)
    return CardPlan(
        index=card.index,
        layers=tuple(layer.name for layer in profile.layers if chosen.stage_of[layer.name] == stage),
        predicted_bytes=chosen.predicted_bytes[card.index],
        capacity_bytes=card.memory_bytes,
        predicted_busy_s=chosen.time.busy_s[card.index],
        **_pooling(chosen, profile, card.index),
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


def notes_before(task: Task, requested: MicroBatches) -> Iterator[str]:
    """What there is to say of the number of micro-batches, whatever will be chosen."""
    if not task.splittable:
        because = f": {task.why_not_split}" if task.why_not_split else ""
        after = ", so the cards work one after another" if task.places > 1 else ""
        yield f"The batch is not split{after}{because}."
    elif isinstance(requested, int) and requested > task.profile.batch_size:
        yield (
            f"{requested} micro-batches were asked for, but the batch has {task.profile.batch_size} samples: one in "
            "each is used."
        )


def notes_after(chosen: Candidate, task: Task, counts: Sequence[int]) -> Iterator[str]:
    """What there is to say of what was chosen."""
    yield from dict.fromkeys(note for stage in task.stages or () for note in stage.facts.notes)
    yield from _notes_on_cards(chosen, task)
    if task.stages is None:
        yield from _notes_on_one_card(chosen, task, counts)


def _notes_on_cards(chosen: Candidate, task: Task) -> Iterator[str]:
    used = {card for stage in set(chosen.stage_of.values()) for card in chosen.stages[stage]}
    staged = {card for stage in chosen.stages for card in stage}
    few = len(task.profile.layers) < task.places
    why = f"the model has only {len(task.profile.layers)} layers" if few else "no layer fits beside the others"
    for card in task.topology.cards:
        if card.index not in used:
            yield f"Card {card.index} holds no layer: {why if card.index in staged else 'it is in no stage'}."


def _notes_on_one_card(chosen: Candidate, task: Task, counts: Sequence[int]) -> Iterator[str]:
    """The user asked for pooling and gets it, but is told where it costs time."""
    usable = task.limits.usable_bytes(task.topology)
    largest = usable.index(max(usable))
    everything_there = {layer.name: largest for layer in task.profile.layers}
    for count in counts if len(usable) > 1 else ():
        alone = evaluate(task.profile, task.topology, task.limits, micro_batches=count, card_of=everything_there)
        if alone.predicted_bytes[largest].total <= usable[largest] and alone.time.step_s < chosen.time.step_s:
            yield (
                f"The model fits card {largest} alone and is predicted to be faster there: "
                f"{format_seconds(alone.time.step_s)} against {format_seconds(chosen.time.step_s)} a step."
            )
            return
