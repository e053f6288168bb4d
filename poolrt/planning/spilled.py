"""A placement whose cards take from the pool what does not fit them, with its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from poolrt.planning.candidate import Candidate
from poolrt.planning.demand import Demand
from poolrt.planning.limits import Limits
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile
from poolrt.planning.spill import CardSpill, distribute
from poolrt.planning.spill_time import reading_s, update_s, with_reading, with_updates
from poolrt.planning.step_time import predict_step
from poolrt.planning.ways import Ways
from poolrt.topology.topology import Topology


def evaluate_spilled(
    profile: Profile,
    topology: Topology,
    ways: Ways,
    limits: Limits,
    *,
    micro_batches: int,
    card_of: Mapping[str, int],
    demands: Sequence[Demand],
) -> Candidate:
    """What is predicted of this placement if its cards take these demands from the pool.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        ways: how they reach one another and the host.
        limits: optimizer and overhead.
        micro_batches: how many parts the batch is cut into, at most its size.
        card_of: layer name to card index, for every layer.
        demands: one for each card.
    """
    spills = distribute(demands, ways)
    trains = optimizer_cost(limits.optimizer).trains
    slowed = with_reading(profile, ways, spills, card_of, micro_batches=micro_batches)
    time = predict_step(
        slowed,
        topology,
        card_of,
        micro_batches=micro_batches,
        call_overhead_s=limits.call_overhead_s,
        backward=trains,
    )
    updates_s = [update_s(profile, ways, card, spill) if trains else 0.0 for card, spill in enumerate(spills)]
    readings_s = reading_s(profile, slowed, card_of, len(spills), trains=trains)
    return Candidate(
        micro_batches=micro_batches,
        stage_of=card_of,
        stages=tuple((card,) for card in range(len(topology))),
        predicted_bytes=tuple(_on_card(demand, spill) for demand, spill in zip(demands, spills, strict=True)),
        time=with_updates(time, updates_s, (card.device for card in topology.cards)),
        spills=spills,
        spill_s=tuple(map(sum, zip(updates_s, readings_s, strict=True))),
    )


def _on_card(demand: Demand, spill: CardSpill) -> PredictedBytes:
    """What lies on a card at its highest moment, which is one of a pass or the optimizer's step."""
    home = spill.pooled
    stepping = replace(demand.stepping, workspace=demand.stepping.workspace + home.temporaries.home)
    highest = max(demand.stays, stepping, key=lambda held: held.total)
    return replace(
        highest,
        weights=highest.weights + home.weights.home,
        optimizer=highest.optimizer + home.optimizer.home,
        guests=spill.guests,
    )
