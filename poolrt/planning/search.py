"""The best cut for a given number of micro-batches, over the orders of the cards worth trying."""

from __future__ import annotations

from functools import cached_property
from itertools import permutations

from poolrt.planning.candidate import Candidate, evaluate
from poolrt.planning.costs import RunCosts
from poolrt.planning.limits import Limits
from poolrt.planning.memory import MemoryModel
from poolrt.planning.partition import Runs, partition
from poolrt.planning.profile import Profile
from poolrt.topology.topology import Topology

TRY_ALL_ORDERS = 3
"""up to so many unlike cards, every order of them along the line is tried"""

Order = tuple[int, ...]
"""card indices along the line"""


class Search:
    """Cuts one profile over one topology, for one number of micro-batches.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: what the plan must keep to.
        micro_batches: how many parts the batch is cut into, at most its size.
    """

    def __init__(self, profile: Profile, topology: Topology, limits: Limits, micro_batches: int) -> None:
        self.profile = profile
        self.topology = topology
        self.limits = limits
        self.micro_batches = micro_batches
        self.usable_bytes = limits.usable_bytes(topology)
        self._memory = MemoryModel(profile, micro_batches=micro_batches, optimizer=limits.optimizer)
        self._last_called = [layer.name for layer in profile.layers].index(profile.calls[-1].layer)
        self._peaks: dict[tuple[int, int, bool], int] = {}

    def best(self) -> Candidate | None:
        """The fastest of the best cuts; None if nothing fits."""
        if self._memory.floor_of_all_nbytes > sum(self.usable_bytes):
            return None
        found = [self.candidate(order, runs) for order in self.orders if (runs := self._cut(order))]
        return min(found, key=lambda candidate: candidate.time.step_s, default=None)

    def is_feasible(self) -> bool:
        """Whether any cut fits; quicker than `best` where one does."""
        if self._memory.floor_of_all_nbytes > sum(self.usable_bytes):
            return False
        return any(self.pack(order) or self._cut(order) for order in self.orders)

    def candidate(self, order: Order, runs: Runs) -> Candidate:
        """What comes of it if the cards, in this order along the line, hold these runs."""
        card_of = self.card_of(order, runs)
        return evaluate(self.profile, self.topology, self.limits, micro_batches=self.micro_batches, card_of=card_of)

    def card_of(self, order: Order, runs: Runs) -> dict[str, int]:
        """Layer name to card index if the cards, in this order along the line, hold these runs."""
        return {
            layer.name: card
            for card, (first, last) in zip(order, runs, strict=True)
            for layer in self.profile.layers[first:last]
        }

    def pack(self, order: Order, scale: float = 1.0) -> Runs | None:
        """Runs that fill card after card as far as its memory times `scale` goes; None if that is too little.

        The end of each run is found by bisection: a longer run has no lower peak. Only where layers are called again
        may that fail, and then a cut that fits can be missed.
        """
        runs: list[tuple[int, int]] = []
        first, layers = 0, len(self.profile.layers)
        for card in order:
            last, too_far = first, layers + 1
            while too_far - last > 1:
                middle = (last + too_far) // 2
                fits = self.fits(card, first, middle, scale)
                last, too_far = (middle, too_far) if fits else (last, middle)
            runs.append((first, last))
            first = last
        return tuple(runs) if first == layers else None

    def fits(self, card: int, first: int, last: int, scale: float = 1.0) -> bool:
        """Whether layers first..last-1 fit card number `card`, were its memory `scale` times what it is."""
        limit = self.usable_bytes[card] * scale
        return self._memory.floor_nbytes(first, last) <= limit and self._peak_nbytes(card, first, last) <= limit

    def gathers(self, card: int, first: int, last: int) -> bool:
        """Whether the whole outputs are put together on card number `card` if it holds layers first..last-1."""
        output = self.limits.output_card
        return first <= self._last_called < last if output == "last" else output == card

    def _peak_nbytes(self, card: int, first: int, last: int) -> int:
        gathers = self.gathers(card, first, last)
        key = (first, last, gathers)
        if key not in self._peaks:
            self._peaks[key] = self._memory.peak(range(first, last), gathers=gathers).total
        return self._peaks[key]

    @cached_property
    def orders(self) -> list[Order]:
        """The order given; where cards are unlike, also all others if they are few, or else by memory up and down."""
        given = tuple(range(len(self.topology.cards)))
        if len(set(self.usable_bytes)) == 1:
            return [given]
        if len(given) <= TRY_ALL_ORDERS:
            return list(permutations(given))
        rising = tuple(sorted(given, key=lambda card: self.usable_bytes[card]))
        return list(dict.fromkeys((given, rising, rising[::-1])))

    def _cut(self, order: Order) -> Runs | None:
        costs = RunCosts(
            self.profile,
            self.topology.subset(order),
            micro_batches=self.micro_batches,
            call_overhead_s=self.limits.call_overhead_s,
        )

        return partition(costs, lambda position, first, last: self.fits(order[position], first, last))
