"""One call while the probe measures it, and how noise is taken out of many of them."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from poolrt.planning.profile import CallFacts


@dataclass
class MeasuredCall:
    """One call while it is measured; see CallFacts for the meaning of the fields."""

    layer: str
    alike: Hashable = None
    """layers with the same key have the same structure, so the same work"""
    forward_s: float = 0.0
    backward_s: float = 0.0
    accumulate_s: float = 0.0
    glue_s: float = 0.0
    saved_nbytes: int = 0
    forward_workspace_nbytes: int = 0
    backward_workspace_nbytes: int = 0
    output_nbytes: int = 0
    glue_saved_nbytes: int = 0
    glue_workspace_nbytes: int = 0
    operations: int = 0

    def facts(self) -> CallFacts:
        """What the planner is told of it."""
        return CallFacts(
            layer=self.layer,
            forward_s=self.forward_s + self.glue_s,
            backward_s=self.backward_s,
            saved_nbytes=self.saved_nbytes,
            forward_workspace_nbytes=self.forward_workspace_nbytes,
            backward_workspace_nbytes=self.backward_workspace_nbytes,
            output_nbytes=self.output_nbytes,
            accumulate_s=self.accumulate_s,
            glue_saved_nbytes=self.glue_saved_nbytes,
            glue_workspace_nbytes=self.glue_workspace_nbytes,
            operations=self.operations,
        )


def settle(calls: Sequence[MeasuredCall]) -> None:
    """Give layers of the same structure the same seconds, the median: a busy machine must not tilt the plan."""
    groups: dict[Hashable, list[MeasuredCall]] = {}
    for call in calls:
        groups.setdefault(call.alike, []).append(call)
    for group in groups.values():
        forward_s = statistics.median(call.forward_s for call in group)
        backward_s = statistics.median(call.backward_s for call in group)
        accumulate_s = statistics.median(call.accumulate_s for call in group)
        for call in group:
            call.forward_s, call.backward_s, call.accumulate_s = forward_s, backward_s, accumulate_s
