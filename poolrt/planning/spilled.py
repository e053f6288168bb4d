"""A placement whose cards take from the pool what does not fit them, with its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from poolrt.planning.candidate import Candidate
from poolrt.planning.demand import Demand
from poolrt.planning.limits import Limits
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.spill import CardSpill, distribute
from poolrt.planning.spill_time import reading_of_step_s, reading_s, update_s, with_updates
from poolrt.planning.stage_time import predict_stages
from poolrt.planning.stages import Stages, profiles_of_cards
from poolrt.planning.ways import Ways
from poolrt.topology.topology import Topology


def evaluate_spilled(
    stages: Stages,
    topology: Topology,
    ways: Ways,
    limits: Limits,
    *,
    micro_batches: int,
    stage_of: Mapping[str, int],
    demands: Sequence[Demand],
) -> Candidate:
    """What is predicted of this placement if its cards take these demands from the pool.

    Args:
        stages: the cards, and what was measured, for the batch that is planned.
        topology: the cards.
        ways: how they reach one another and the host.
        limits: optimizer and overhead.
        micro_batches: how many parts the batch is cut into, at most its size.
        stage_of: layer name to the position of its stage, for every layer.
        demands: one for each card.
    """
    spills = distribute(demands, ways)
    trains = optimizer_cost(limits.optimizer).trains
    profiles = profiles_of_cards(stages, len(topology))
    of_cards = list(zip(range(len(spills)), profiles, spills, strict=True))
    waiting_s = [
        reading_s(own, ways, card, spill, stage_of, micro_batches=micro_batches) for card, own, spill in of_cards
    ]
    updates_s = [update_s(own, ways, card, spill) if trains else 0.0 for card, own, spill in of_cards]
    time = predict_stages(stages, topology, limits, micro_batches=micro_batches, stage_of=stage_of, waiting_s=waiting_s)
    reading = [reading_of_step_s(own, waits, trains=trains) for own, waits in zip(profiles, waiting_s, strict=True)]
    return Candidate(
        micro_batches=micro_batches,
        stage_of=stage_of,
        stages=tuple(stage.cards for stage in stages),
        predicted_bytes=tuple(_on_card(demand, spill) for demand, spill in zip(demands, spills, strict=True)),
        time=with_updates(time, updates_s, (card.device for card in topology.cards)),
        spills=spills,
        spill_s=tuple(map(sum, zip(updates_s, reading, strict=True))),
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
