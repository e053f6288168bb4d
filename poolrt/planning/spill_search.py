"""The best cut where cards spill: fast, with what does not fit elsewhere, and no more on the host than it gives.

Several cuts are proposed, each the best by an estimate: where what is spilled goes over the slowest link or the
fastest, or where least of it goes to the host. Every one is then predicted exactly, and its borders are moved by a
layer for as long as that helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from poolrt.planning.candidate import Candidate
from poolrt.planning.demand import Demand, Demands
from poolrt.planning.limits import Limits
from poolrt.planning.partition import Runs, least_total, partition
from poolrt.planning.profile import Profile
from poolrt.planning.search import Order, Search
from poolrt.planning.spill import reachable_peers
from poolrt.planning.spill_costs import SpillCosts, SpillEstimate
from poolrt.planning.spill_time import host_bytes_per_s
from poolrt.planning.spilled import evaluate_spilled
from poolrt.topology.route import route
from poolrt.topology.topology import Topology

_Key = tuple[int, float, int]


def is_feasible(profile: Profile, topology: Topology, limits: Limits, micro_batches: int) -> bool:
    """Whether a cut is found that fits, with spilling if the limits allow it.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: what the plan must keep to.
        micro_batches: how many parts the batch is cut into, at most its size.
    """
    kinds = (Search,) if limits.host_bytes is None else (Search, SpillSearch)
    return any(kind(profile, topology, limits, micro_batches).is_feasible() for kind in kinds)


class SpillSearch(Search):
    """Cuts one profile over one topology, for one number of micro-batches; what does not fit a card is spilled.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: what the plan must keep to.
        micro_batches: how many parts the batch is cut into, at most its size.
    """

    def __init__(self, profile: Profile, topology: Topology, limits: Limits, micro_batches: int) -> None:
        super().__init__(profile, topology, limits, micro_batches)
        self._demands = Demands(profile, micro_batches=micro_batches, optimizer=limits.optimizer)
        self._estimate = SpillEstimate(profile, micro_batches=micro_batches, optimizer=limits.optimizer)
        self._least: dict[tuple[int, int, bool], int] = {}
        self._found: dict[tuple[int, int, int, bool], Demand] = {}

    def best(self) -> Candidate | None:
        """The fastest of the cuts that were found; None if none fits cards and host."""
        found = (self._improved(order, runs) for order in self.orders for runs in self._proposals(order))
        return min((candidate for candidate in found if self._fits_host(candidate)), key=self._key, default=None)

    def is_feasible(self) -> bool:
        """Whether any cut was found that fits; quicker than `best`."""
        found = (self._improved(order, runs) for order in self.orders for runs in self._nearest_host(order))
        return any(self._fits_host(candidate) for candidate in found)

    def least_host(self) -> Candidate | None:
        """The cut that was found to need least of the host; None if no cut fits the cards, whatever is spilled."""
        found = (self.candidate(order, runs) for order in self.orders for runs in self._nearest_host(order))
        return min(found, key=lambda candidate: candidate.host_bytes, default=None)

    def candidate(self, order: Order, runs: Runs) -> Candidate:
        """What comes of it if the cards, in this order along the line, hold these runs."""
        demands = {card: self._demand(card, *run) for card, run in zip(order, runs, strict=True)}
        return evaluate_spilled(
            self.profile,
            self.topology,
            self.limits,
            micro_batches=self.micro_batches,
            card_of=self.card_of(order, runs),
            demands=[demands[card] for card in range(len(demands))],
        )

    def fits(self, card: int, first: int, last: int, scale: float = 1.0) -> bool:
        """Whether what cannot be spilled of layers first..last-1 fits card number `card`, as large as `scale` says."""
        key = (first, last, self.gathers(card, first, last))
        if key not in self._least:
            self._least[key] = self._demands.unspillable_nbytes(range(first, last), gathers=key[2])
        return self._least[key] <= self.usable_bytes[card] * scale

    def _demand(self, card: int, first: int, last: int) -> Demand:
        usable, gathers = self.usable_bytes[card], self.gathers(card, first, last)
        key = (usable, first, last, gathers)
        if key not in self._found:
            self._found[key] = self._demands.of(range(first, last), usable_bytes=usable, gathers=gathers)
        return self._found[key]

    def _proposals(self, order: Order) -> Iterator[Runs]:
        """Cuts worth predicting, each once."""
        proposed = [runs for rates in self._rates if (runs := self._fastest(order, rates))]
        yield from dict.fromkeys((*proposed, *self._nearest_host(order)))

    def _nearest_host(self, order: Order) -> Iterator[Runs]:
        """The cuts that leave least for the host: if no card gives room to another, and if all do."""

        def lacking(position: int, first: int, last: int) -> float:
            return max(0.0, balance(position, first, last))

        def balance(position: int, first: int, last: int) -> float:
            return self._estimate.away_nbytes(first, last, self.usable_bytes[order[position]])

        costs = self._costs(order, self._rates[0])
        for amount in (lacking, balance) if len(self._rates) > 1 else (lacking,):
            if runs := least_total(costs, lambda position, *run: self.fits(order[position], *run), amount):
                yield runs

    def _fastest(self, order: Order, rates: tuple[float, ...]) -> Runs | None:
        return partition(self._costs(order, rates), lambda position, *run: self.fits(order[position], *run))

    def _costs(self, order: Order, rates: tuple[float, ...]) -> SpillCosts:
        return SpillCosts(
            self.profile,
            self.topology.subset(order),
            self._estimate,
            usable_bytes=tuple(self.usable_bytes[card] for card in order),
            bytes_per_s=tuple(rates[card] for card in order),
            micro_batches=self.micro_batches,
            call_overhead_s=self.limits.call_overhead_s,
        )

    @cached_property
    def _rates(self) -> list[tuple[float, ...]]:
        """For each card, bytes per second to what it spills: were all on the host; and were all on its nearest peer."""
        cards = range(len(self.topology.cards))
        to_host = tuple(host_bytes_per_s(self.topology, card) for card in cards)
        nearest = [next(iter(reachable_peers(self.topology, card)), None) for card in cards]
        to_peer = tuple(
            host if peer is None else route(self.topology, peer, card).bytes_per_s
            for card, (peer, host) in enumerate(zip(nearest, to_host, strict=True))
        )
        return list(dict.fromkeys((to_host, to_peer)))

    def _fits_host(self, candidate: Candidate) -> bool:
        return candidate.host_bytes <= (self.limits.host_bytes or 0)

    def _key(self, candidate: Candidate) -> _Key:
        """What is better comes first: too much on the host, then seconds, then bytes that are away."""
        too_much = max(0, candidate.host_bytes - (self.limits.host_bytes or 0))
        return too_much, candidate.time.step_s, candidate.away_bytes

    def _improved(self, order: Order, runs: Runs) -> Candidate:
        """The cut after its borders were moved, a layer at a time, for as long as that makes it better."""
        best = self.candidate(order, runs)
        while True:
            moves = [(self.candidate(order, moved), moved) for moved in self._moved(order, runs)]
            better = min(moves, key=lambda move: self._key(move[0]), default=None)
            if better is None or self._key(better[0]) >= self._key(best):
                return best
            best, runs = better

    def _moved(self, order: Order, runs: Runs) -> Iterator[Runs]:
        """The cuts that differ from `runs` by one border and one layer, and fit."""
        for position in range(len(runs) - 1):
            (first, border), (_, last) = runs[position : position + 2]
            for moved in (border - 1, border + 1):
                if first <= moved <= last and self._both_fit(order[position : position + 2], first, moved, last):
                    yield (*runs[:position], (first, moved), (moved, last), *runs[position + 2 :])

    def _both_fit(self, cards: Order, first: int, border: int, last: int) -> bool:
        return self.fits(cards[0], first, border) and self.fits(cards[1], border, last)
