"""What is to be planned: a profile, cards or stages of cards, and what a plan must keep to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from poolrt.planning.counts import MicroBatches, micro_batch_counts
from poolrt.planning.limits import Limits
from poolrt.planning.profile import Profile
from poolrt.planning.search import Search
from poolrt.planning.spill_search import SpillSearch, is_feasible
from poolrt.planning.stages import Stages, scaled_stages
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question to the planner."""

    profile: Profile
    """what was measured, for the batch that is planned"""
    topology: Topology
    limits: Limits
    splittable: bool = True
    """False if splitting the batch would change the model's result"""
    why_not_split: str = ""
    """the reason for that, half a sentence"""
    stages: Stages | None = None
    """cards that run the same layers together, in the order of the line; None: every card by itself"""

    @property
    def places(self) -> int:
        """How many stages there are, a card by itself being one."""
        return len(self.stages) if self.stages is not None else len(self.topology)

    def counts(self, requested: MicroBatches) -> tuple[int, ...]:
        """The numbers of micro-batches to consider, rising."""
        return micro_batch_counts(
            requested, batch_size=self.profile.batch_size, cards=self.places, splittable=self.splittable
        )

    def search(self, micro_batches: int) -> Search:
        """A search for cuts of which every card holds everything itself."""
        return Search(self.profile, self.topology, self.limits, micro_batches, self.stages)

    def spill_search(self, micro_batches: int) -> SpillSearch:
        """A search for cuts whose cards take from the pool what does not fit them."""
        return SpillSearch(self.profile, self.topology, self.limits, micro_batches, self.stages)

    def is_feasible(self, micro_batches: int) -> bool:
        """Whether a cut is found that fits, with spilling if the limits allow it."""
        return is_feasible(self.profile, self.topology, self.limits, micro_batches, self.stages)

    def scaled(self, batch_size: int) -> Task:
        """The same for a batch of `batch_size` samples."""
        stages = None if self.stages is None else scaled_stages(self.stages, batch_size)
        return replace(self, profile=self.profile.scaled(batch_size), stages=stages)
