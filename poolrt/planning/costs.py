"""What a run of layers costs one card in seconds, looked up from tables made once.

A run first..last-1 pays for its calls and for what crosses its borders. What a call hands to the next crosses forward
into the run of the next, and its gradient crosses backward into the run of the call: where the call sequence passes a
border, each side pays once.

        run of card 0     |     run of card 1      |   run of card 2
    --> call --> call ----|--> call --> call ------|--> call
                       <--|-- gradient          <--|-- gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from poolrt.planning.profile import CallFacts, Profile
from poolrt.topology.route import Route, route
from poolrt.topology.topology import Topology

CALL_OVERHEAD_S = 100e-6
"""default fixed cost of one call of one micro-batch: hooks, the ticket, and kernels too short to fill a card"""


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Costs of all runs on one card as [first][last], for one micro-batch, forward and backward, in seconds."""

    busy_s: list[list[float]]
    """computing and copies"""
    crossing_s: list[list[float]]
    """the copies alone"""


class RunCosts:
    """Costs of every run of layers on every card of the line.

    Args:
        profile: what was measured.
        topology: the cards, in the order of the line.
        micro_batches: how many parts the batch is cut into.
        call_overhead_s: fixed cost of one call of one micro-batch, forward or backward, in seconds.
        profiles: for each card of the line, the profile with its seconds; None if all have those measured.
    """

    def __init__(
        self,
        profile: Profile,
        topology: Topology,
        *,
        micro_batches: int,
        call_overhead_s: float,
        profiles: Sequence[Profile] | None = None,
    ) -> None:
        self.layers = len(profile.layers)
        self.cards = len(topology.cards)
        self._topology = topology
        self._micro_batches = micro_batches
        self._profiles = profiles or [profile] * self.cards
        self._compute_s = {id(x): _layer_seconds(x, micro_batches, call_overhead_s) for x in self._profiles}
        self._hand_overs = _hand_overs(profile)
        self._tables: dict[tuple[float, ...], RunTable] = {}

    def table(self, card: int) -> RunTable:
        """The costs on the card at position `card` of the line; cards whose links are alike share one table."""
        left = route(self._topology, card - 1, card) if card else None
        right = route(self._topology, card + 1, card) if card + 1 < self.cards else None
        # Nothing crosses the outer border of the line, so any speed will do there: the same as inside shares a table.
        left, right = left or right, right or left
        kind = id(self._profiles[card])
        key = (kind, *(value for way in (left, right) if way for value in (way.bytes_per_s, way.latency_s)))
        if key not in self._tables:
            self._tables[key] = self._fill(self._compute_s[kind], left, right)
        return self._tables[key]

    def _fill(self, layers_s: Sequence[float], left: Route | None, right: Route | None) -> RunTable:
        compute_s = list(accumulate(layers_s, initial=0.0))
        crossing_s = [[0.0] * (self.layers + 1) for _ in range(self.layers + 1)]
        if left and right:
            self._add_borders(crossing_s, left, right)
        busy_s = [
            [compute_s[last] - compute_s[first] + crossing_s[first][last] for last in range(self.layers + 1)]
            for first in range(self.layers + 1)
        ]
        return RunTable(busy_s=busy_s, crossing_s=crossing_s)

    def _add_borders(self, crossing_s: list[list[float]], left: Route, right: Route) -> None:
        """Each hand-over between layers x < y crosses the right border of runs that hold x alone, the left of y's."""
        for (x, y), (nbytes, copies) in self._hand_overs.items():
            over_right_s = right.copy_s(nbytes / self._micro_batches, copies)
            over_left_s = left.copy_s(nbytes / self._micro_batches, copies)
            for first in range(x + 1):
                for last in range(x + 1, y + 1):
                    crossing_s[first][last] += over_right_s
            for first in range(x + 1, y + 1):
                for last in range(y + 1, self.layers + 1):
                    crossing_s[first][last] += over_left_s


def _layer_seconds(profile: Profile, micro_batches: int, call_overhead_s: float) -> list[float]:
    seconds = {layer.name: 0.0 for layer in profile.layers}
    for call in profile.calls:
        seconds[call.layer] += (call.forward_s + call.backward_s) / micro_batches + 2 * call_overhead_s
        seconds[call.layer] += accumulate_s(call, micro_batches)
    return list(seconds.values())


def accumulate_s(call: CallFacts, micro_batches: int) -> float:
    """Seconds that adding up gradients costs one micro-batch on average; the first one has nothing to add to."""
    return call.accumulate_s * (micro_batches - 1) / micro_batches


def _hand_overs(profile: Profile) -> dict[tuple[int, int], tuple[int, int]]:
    """For each pair of layers x < y that call one another: (bytes handed over in both directions, how often)."""
    positions = {layer.name: position for position, layer in enumerate(profile.layers)}
    total: dict[tuple[int, int], tuple[int, int]] = {}
    for call, following in pairwise(profile.calls):
        pair = (positions[call.layer], positions[following.layer])
        x, y = min(pair), max(pair)
        if x != y:
            nbytes, copies = total.get((x, y), (0, 0))
            total[x, y] = (nbytes + call.output_nbytes, copies + 1)
    return total
