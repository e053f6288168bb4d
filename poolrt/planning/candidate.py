"""One way to run the step, with its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolrt.planning.granules import GRANULE
from poolrt.planning.limits import Limits
from poolrt.planning.memory import predict_held
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile
from poolrt.planning.spill import CardSpill
from poolrt.planning.stage_time import predict_stages
from poolrt.planning.stages import Stages, profiles_of_cards, single_cards
from poolrt.planning.step_time import StepTime
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A placement and a number of micro-batches, and what is predicted of them."""

    micro_batches: int
    stage_of: Mapping[str, int]
    """layer name to the position of its stage"""
    stages: tuple[tuple[int, ...], ...]
    """for each stage the indices of its cards, the lead card first"""
    predicted_bytes: tuple[PredictedBytes, ...]
    """for each card, at its peak"""
    time: StepTime
    spills: tuple[CardSpill, ...] = ()
    """for each card, what it takes from the pool and gives to it; empty if nothing is spilled"""

    spill_s: tuple[float, ...] = ()
    """for each card, the seconds of a step that it waits for what lies elsewhere"""

    @property
    def card_of(self) -> dict[str, int]:
        """Layer name to card index: that of the lead card where several run it together."""
        return {layer: self.stages[stage][0] for layer, stage in self.stage_of.items()}

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
    """What is predicted of this placement of whole layers.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: optimizer, overhead, and where outputs are put together.
        micro_batches: how many parts the batch is cut into, at most its size.
        card_of: layer name to card index, for every layer.
    """
    stages = single_cards(profile, topology)
    return evaluate_stages(stages, topology, limits, micro_batches=micro_batches, stage_of=card_of)


def evaluate_stages(
    stages: Stages, topology: Topology, limits: Limits, *, micro_batches: int, stage_of: Mapping[str, int]
) -> Candidate:
    """What is predicted of this placement of layers on stages.

    Args:
        stages: the cards, and what was measured, for the batch that is planned.
        topology: the cards.
        limits: optimizer, overhead, and where outputs are put together.
        micro_batches: how many parts the batch is cut into, at most its size.
        stage_of: layer name to the position of its stage, for every layer.
    """
    return Candidate(
        micro_batches=micro_batches,
        stage_of=stage_of,
        stages=tuple(stage.cards for stage in stages),
        predicted_bytes=_predicted_bytes(stages, len(topology), limits, micro_batches, stage_of),
        time=predict_stages(stages, topology, limits, micro_batches=micro_batches, stage_of=stage_of),
    )


def _predicted_bytes(
    stages: Stages, cards: int, limits: Limits, micro_batches: int, stage_of: Mapping[str, int]
) -> tuple[PredictedBytes, ...]:
    """A card in no stage holds nothing, but outputs may be put together on it."""
    profile = stages[0].facts.profile
    held: list[list[int]] = [[] for _ in range(cards)]
    for index, stage in enumerate(stages):
        layers = [position for position, layer in enumerate(profile.layers) if stage_of[layer.name] == index]
        for card in stage.cards:
            held[card] = layers
    output_card: int | str = limits.output_card
    if output_card == "last":
        output_card = stages[stage_of[profile.calls[-1].layer]].lead
    return predict_held(
        profiles_of_cards(stages, cards),
        held,
        micro_batches=micro_batches,
        optimizer=limits.optimizer,
        output_card=output_card if isinstance(output_card, int) else None,
    )
