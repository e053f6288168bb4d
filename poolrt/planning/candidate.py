"""One way to run the step, with its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolrt.planning.granules import GRANULE
from poolrt.planning.limits import Limits
from poolrt.planning.memory import predict_cards
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile
from poolrt.planning.spill import CardSpill
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
    spills: tuple[CardSpill, ...] = ()
    """for each card, what it takes from the pool and gives to it; empty if nothing is spilled"""

    spill_s: tuple[float, ...] = ()
    """for each card, the seconds of a step that it waits for what lies elsewhere"""

    @property
    def host_bytes(self) -> int:
        """Pooled bytes on the host, with a granule for each card that has some there: small tensors may need it."""
        there = [nbytes for spill in self.spills if (nbytes := spill.pooled.all.host)]
        return sum(there) + GRANULE * len(there)

    @property
    def away_bytes(self) -> int:
        """Pooled bytes that are not on their home card."""
        return sum(spill.pooled.all.away for spill in self.spills)


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
