"""The best cut for a given number of micro-batches, over the orders of the stages worth trying."""

from __future__ import annotations

from functools import cached_property
from itertools import permutations

from poolrt.planning.candidate import Candidate, evaluate_stages
from poolrt.planning.costs import RunCosts
from poolrt.planning.limits import Limits
from poolrt.planning.memory import MemoryModel
from poolrt.planning.partition import Runs, partition
from poolrt.planning.profile import Profile
from poolrt.planning.stage_time import TimedStage, timed_stages
from poolrt.planning.stages import Stages, single_cards
from poolrt.topology.topology import Topology

TRY_ALL_ORDERS = 3
"""up to so many unlike cards, every order of them along the line is tried"""

Order = tuple[int, ...]
"""positions of stages along the line; where every card is one, these are card indices"""


class Search:
    """Cuts one profile over one topology, for one number of micro-batches.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: what the plan must keep to.
        micro_batches: how many parts the batch is cut into, at most its size.
        stages: cards that run the same layers together, in the order of the line; None: every card by itself.
    """

    def __init__(
        self, profile: Profile, topology: Topology, limits: Limits, micro_batches: int, stages: Stages | None = None
    ) -> None:
        self.profile = profile
        self.topology = topology
        self.limits = limits
        self.micro_batches = micro_batches
        self.usable_bytes = limits.usable_bytes(topology)
        self.stages = stages or single_cards(profile, topology)
        self._given_stages = stages is not None
        self._memory = {
            id(own): MemoryModel(own, micro_batches=micro_batches, optimizer=limits.optimizer)
            for stage in self.stages
            for _, own in stage.members
        }
        self._last_called = [layer.name for layer in profile.layers].index(profile.calls[-1].layer)
        self._peaks: dict[tuple[int, int, int, bool], int] = {}

    def best(self) -> Candidate | None:
        """The fastest of the best cuts; None if nothing fits."""
        if self._is_hopeless:
            return None
        found = [self.candidate(order, runs) for order in self.orders if (runs := self._cut(order))]
        return min(found, key=lambda candidate: candidate.time.step_s, default=None)

    def is_feasible(self) -> bool:
        """Whether any cut fits; quicker than `best` where one does."""
        if self._is_hopeless:
            return False
        return any(self.pack(order) or self._cut(order) for order in self.orders)

    def candidate(self, order: Order, runs: Runs) -> Candidate:
        """What comes of it if the stages, in this order along the line, hold these runs."""
        return evaluate_stages(
            self.stages,
            self.topology,
            self.limits,
            micro_batches=self.micro_batches,
            stage_of=self.stage_of(order, runs),
        )

    def stage_of(self, order: Order, runs: Runs) -> dict[str, int]:
        """Layer name to stage if the stages, in this order along the line, hold these runs."""
        return {
            layer.name: stage
            for stage, (first, last) in zip(order, runs, strict=True)
            for layer in self.profile.layers[first:last]
        }

    def pack(self, order: Order, scale: float = 1.0) -> Runs | None:
        """Runs that fill stage after stage as far as its memory times `scale` goes; None if that is too little.

        The end of each run is found by bisection: a longer run has no lower peak. Only where layers are called again
        may that fail, and then a cut that fits can be missed.
        """
        runs: list[tuple[int, int]] = []
        first, layers = 0, len(self.profile.layers)
        for stage in order:
            last, too_far = first, layers + 1
            while too_far - last > 1:
                middle = (last + too_far) // 2
                fits = self.fits(stage, first, middle, scale)
                last, too_far = (middle, too_far) if fits else (last, middle)
            runs.append((first, last))
            first = last
        return tuple(runs) if first == layers else None

    def fits(self, stage: int, first: int, last: int, scale: float = 1.0) -> bool:
        """Whether layers first..last-1 fit every card of a stage, were its memory `scale` times what it is."""
        return all(
            self._fits_card(card, own, first, last, scale * self.usable_bytes[card])
            for card, own in self.stages[stage].members
        )

    def gathers(self, card: int, first: int, last: int) -> bool:
        """Whether the whole outputs are put together on card number `card` if its stage holds layers first..last-1."""
        output = self.limits.output_card
        if output == "last":
            return first <= self._last_called < last and any(stage.lead == card for stage in self.stages)
        return output == card

    @property
    def _is_hopeless(self) -> bool:
        """Seen at a glance; of pieces of layers the least that all cards need together is not known so quickly."""
        if self._given_stages:
            return False
        return any(model.floor_of_all_nbytes > sum(self.usable_bytes) for model in self._memory.values())

    def _fits_card(self, card: int, own: Profile, first: int, last: int, limit: float) -> bool:
        if self._memory[id(own)].floor_nbytes(first, last) > limit:
            return False
        return self._peak_nbytes(own, first, last, self.gathers(card, first, last)) <= limit

    def _peak_nbytes(self, own: Profile, first: int, last: int, gathers: bool) -> int:
        key = (id(own), first, last, gathers)
        if key not in self._peaks:
            self._peaks[key] = self._memory[id(own)].peak(range(first, last), gathers=gathers).total
        return self._peaks[key]

    @cached_property
    def orders(self) -> list[Order]:
        """The order given; where cards are unlike, also all others if they are few, or else by memory up and down.

        Stages that were asked for keep theirs.
        """
        given = tuple(range(len(self.stages)))
        if self._given_stages or len(set(self.usable_bytes)) == 1:
            return [given]
        if len(given) <= TRY_ALL_ORDERS:
            return list(permutations(given))
        rising = tuple(sorted(given, key=lambda card: self.usable_bytes[card]))
        return list(dict.fromkeys((given, rising, rising[::-1])))

    def leads(self, order: Order) -> Topology:
        """The lead cards of the stages in this order: what is handed on goes from one to the next."""
        return self.topology.subset([self.stages[stage].lead for stage in order])

    @cached_property
    def clocks(self) -> tuple[TimedStage, ...]:
        """How long each stage is busy with each call."""
        return timed_stages(
            self.stages,
            self.topology,
            micro_batches=self.micro_batches,
            call_overhead_s=self.limits.call_overhead_s,
        )

    def _cut(self, order: Order) -> Runs | None:
        costs = RunCosts(
            self.profile,
            self.leads(order),
            micro_batches=self.micro_batches,
            call_overhead_s=self.limits.call_overhead_s,
            profiles=[self.clocks[stage].profile for stage in order],
        )

        return partition(costs, lambda position, first, last: self.fits(order[position], first, last))
