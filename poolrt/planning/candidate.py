"""One way to run the step, with its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolrt.planning.limits import Limits
from poolrt.planning.memory import predict_cards
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile
from poolrt.planning.step_time import StepTime, predict_step
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A placement and a number of micro-batches, and what is predicted of them."""

    micro_batches: int
    card_of: Mapping[str, int]
    predicted_bytes: tuple[PredictedBytes, ...]
    """for each card, at its peak"""
    time: StepTime


def evaluate(
    profile: Profile, topology: Topology, limits: Limits, *, micro_batches: int, card_of: Mapping[str, int]
) -> Candidate:
    """What is predicted of this placement.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: optimizer, overhead, and where outputs are put together.
        micro_batches: how many parts the batch is cut into, at most its size.
        card_of: layer name to card index, for every layer.
    """
    output_card = card_of[profile.calls[-1].layer] if limits.output_card == "last" else limits.output_card
    return Candidate(
        micro_batches=micro_batches,
        card_of=card_of,
        predicted_bytes=predict_cards(
            profile,
            card_of,
            len(topology.cards),
            micro_batches=micro_batches,
            optimizer=limits.optimizer,
            output_card=output_card if isinstance(output_card, int) else None,
        ),
        time=predict_step(
            profile,
            topology,
            card_of,
            micro_batches=micro_batches,
            call_overhead_s=limits.call_overhead_s,
            backward=optimizer_cost(limits.optimizer).trains,
        ),
    )
