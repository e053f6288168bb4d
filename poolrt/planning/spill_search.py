"""The best cut where cards spill: fast, with what does not fit elsewhere, and no more on the host than it gives.

A few cuts are proposed, each the best by an estimate: if what is spilled goes to the host, if it goes to the nearest
peer, and, where the host has not got that much, if least of it goes there. They are predicted exactly, and the borders
of the best are moved by a layer for as long as that helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from poolrt.planning.candidate import Candidate
from poolrt.planning.demand import Demand, Demands
from poolrt.planning.limits import Limits
from poolrt.planning.partition import Fits, Runs, fastest, least_total
from poolrt.planning.profile import Profile
from poolrt.planning.search import Order, Search
from poolrt.planning.spill_costs import SpillCosts, Spiller, SpillEstimate
from poolrt.planning.spilled import evaluate_spilled
from poolrt.planning.stages import Stages, profiles_of_cards
from poolrt.planning.ways import Ways
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cut and what is predicted of it."""

    order: Order
    runs: Runs
    candidate: Candidate
    host_bytes: int
    """what the host gives"""

    @property
    def fits_host(self) -> bool:
        """Whether the host gives what the cut takes of it."""
        return self.candidate.host_bytes <= self.host_bytes

    @property
    def rank(self) -> tuple[int, float, int]:
        """What is better comes first: bytes that the host has not got, then seconds, then bytes that are away."""
        too_much = max(0, self.candidate.host_bytes - self.host_bytes)
        return too_much, self.candidate.time.step_s, self.candidate.away_bytes


def is_feasible(
    profile: Profile, topology: Topology, limits: Limits, micro_batches: int, stages: Stages | None = None
) -> bool:
    """Whether a cut is found that fits, with spilling if the limits allow it.

    Args:
        profile: what was measured, for the batch that is planned.
        topology: the cards.
        limits: what the plan must keep to.
        micro_batches: how many parts the batch is cut into, at most its size.
        stages: cards that run the same layers together; None: every card by itself.
    """
    kinds = (Search,) if limits.host_bytes is None else (Search, SpillSearch)
    return any(kind(profile, topology, limits, micro_batches, stages).is_feasible() for kind in kinds)


class SpillSearch(Search):
    """Cuts one profile over one topology, for one number of micro-batches; what does not fit a card is spilled.

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
        super().__init__(profile, topology, limits, micro_batches, stages)
        self._ways = Ways(topology)
        self._profiles = profiles_of_cards(self.stages, len(topology))
        unlike = {id(own): own for own in self._profiles}
        self._demands = {
            key: Demands(own, micro_batches=micro_batches, optimizer=limits.optimizer) for key, own in unlike.items()
        }
        self._estimates = {
            key: SpillEstimate(own, micro_batches=micro_batches, optimizer=limits.optimizer)
            for key, own in unlike.items()
        }
        self._found: dict[tuple[int, int, int, int, bool], Demand] = {}

    def best(self) -> Candidate | None:
        """The fastest cut that was found; None if none fits cards and host."""
        cut = self.first_cut()
        return self.improved(cut).candidate if cut and cut.fits_host else None

    def is_feasible(self) -> bool:
        """Whether a cut was found that fits cards and host."""
        cut = self.first_cut()
        return cut is not None and cut.fits_host

    def first_cut(self) -> Cut | None:
        """The best proposal, even if the host has not got what it takes; None if no cut fits the cards."""
        cuts = [self._cut_at(order, runs) for order in self.orders for runs in self._fastest(order)]
        if not any(cut.fits_host for cut in cuts):
            cuts += [self._cut_at(order, runs) for order in self.orders for runs in self._nearest_host(order)]
        best = min(cuts, key=lambda cut: cut.rank, default=None)
        return best if best is None or best.fits_host else self.improved(best)

    def improved(self, cut: Cut) -> Cut:
        """The cut after its borders were moved, a layer at a time, for as long as that makes it better."""
        while True:
            moved = (self._cut_at(cut.order, runs) for runs in self._moved(cut.order, cut.runs))
            better = min(moved, key=lambda other: other.rank, default=cut)
            if better.rank >= cut.rank:
                return cut
            cut = better

    def candidate(self, order: Order, runs: Runs) -> Candidate:
        """What comes of it if the stages, in this order along the line, hold these runs."""
        run_of = {card: run for stage, run in zip(order, runs, strict=True) for card in self.stages[stage].cards}
        return evaluate_spilled(
            self.stages,
            self.topology,
            self._ways,
            self.limits,
            micro_batches=self.micro_batches,
            stage_of=self.stage_of(order, runs),
            demands=[self._demand(card, *run_of.get(card, (0, 0))) for card in range(len(self.topology))],
        )

    def fits(self, stage: int, first: int, last: int, scale: float = 1.0) -> bool:
        """Whether what stays of layers first..last-1 if all that can be is spilled fits every card of a stage.

        The cards are taken to be `scale` times as large as they are.
        """
        return all(
            self._demands[id(own)].fits(
                first, last, usable_bytes=self.usable_bytes[card] * scale, gathers=self.gathers(card, first, last)
            )
            for card, own in self.stages[stage].members
        )

    def _cut_at(self, order: Order, runs: Runs) -> Cut:
        return Cut(
            order=order, runs=runs, candidate=self.candidate(order, runs), host_bytes=self.limits.host_bytes or 0
        )

    def _demand(self, card: int, first: int, last: int) -> Demand:
        usable, own, gathers = self.usable_bytes[card], self._profiles[card], self.gathers(card, first, last)
        key = (id(own), usable, first, last, gathers)
        if key not in self._found:
            self._found[key] = self._demands[id(own)].of(range(first, last), usable_bytes=usable, gathers=gathers)
        return self._found[key]

    def _fastest(self, order: Order) -> Iterator[Runs]:
        """The cuts that are fastest by estimate: if what is spilled goes to the host; and to peers, if one has room."""
        to_host, to_peer = tuple(self._ways.host_bytes_per_s), self._ways.nearest_bytes_per_s
        runs = fastest(self._costs(order, to_host), self._fits_at(order))
        if runs is None:
            return
        yield runs
        balances = [self._balance(order, position, *run) for position, run in enumerate(runs)]
        if (
            to_peer != to_host
            and min(balances) < 0
            and (by_peer := fastest(self._costs(order, to_peer), self._fits_at(order)))
        ):
            yield by_peer

    def _nearest_host(self, order: Order) -> Iterator[Runs]:
        """The cuts that leave least for the host: if no card gives room to another, and if all do."""

        def balance(position: int, first: int, last: int) -> float:
            return self._balance(order, position, first, last)

        def lacking(position: int, first: int, last: int) -> float:
            return max(0.0, balance(position, first, last))

        costs = self._costs(order, tuple(self._ways.host_bytes_per_s))
        for amount in (lacking, balance) if any(self._ways.peers) else (lacking,):
            if runs := least_total(costs, self._fits_at(order), amount):
                yield runs

    def _balance(self, order: Order, position: int, first: int, last: int) -> float:
        """Bytes that lack room, or minus the room that is left, by estimate, on all cards of a stage together."""
        return sum(
            self._estimates[id(own)].away_nbytes(first, last, self.usable_bytes[card])
            for card, own in self.stages[order[position]].members
        )

    def _fits_at(self, order: Order) -> Fits:
        return lambda position, first, last: self.fits(order[position], first, last)

    def _costs(self, order: Order, rates: tuple[float, ...]) -> SpillCosts:
        return SpillCosts(
            self.profile,
            self.leads(order),
            [
                tuple(
                    Spiller(self._estimates[id(own)], self.usable_bytes[card], rates[card])
                    for card, own in self.stages[stage].members
                )
                for stage in order
            ],
            micro_batches=self.micro_batches,
            call_overhead_s=self.limits.call_overhead_s,
            profiles=[self.clocks[stage].profile for stage in order],
        )

    def _moved(self, order: Order, runs: Runs) -> Iterator[Runs]:
        """The cuts that differ from `runs` by one border and one layer, and fit."""
        for position in range(len(runs) - 1):
            (first, border), (_, last) = runs[position : position + 2]
            for moved in (border - 1, border + 1):
                if first <= moved <= last and self._both_fit(order[position : position + 2], first, moved, last):
                    yield (*runs[:position], (first, moved), (moved, last), *runs[position + 2 :])

    def _both_fit(self, stages: Order, first: int, border: int, last: int) -> bool:
        return self.fits(stages[0], first, border) and self.fits(stages[1], border, last)
