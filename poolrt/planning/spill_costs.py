"""What a run of layers costs one card that spills, estimated quickly from sums made once.

For the search only: what is found with it is then predicted exactly. `bounds` says what stays at least, and that is
close wherever there is something to spill.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from poolrt.planning.bounds import Bounds
from poolrt.planning.costs import RunCosts, RunTable
from poolrt.planning.demand import reads_of_layers
from poolrt.planning.granules import trained_blocks
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.profile import Profile
from poolrt.topology.topology import Topology


class _Sums(NamedTuple):
    """Of the layers before one position of the line, in bytes."""

    weights: int
    trained: int
    pooled: int
    """one copy of what is trained, in the pool"""
    reads: int
    """of weights, in one pass of one micro-batch"""


class SpillEstimate:
    """What runs of layers spill, for one profile, optimizer and number of micro-batches.

    Args:
        profile: what was measured.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.
    """

    def __init__(self, profile: Profile, *, micro_batches: int, optimizer: str) -> None:
        self._cost = optimizer_cost(optimizer)
        self._micro_batches = micro_batches
        self._bounds = Bounds(profile, micro_batches=micro_batches, optimizer=optimizer)
        self._sums = _sums(profile, self._cost.trains)

    def away_nbytes(self, first: int, last: int, usable_bytes: int) -> float:
        """Bytes of layers first..last-1 that lack room on a card; where nothing does, minus the room that is left."""
        return self._away(first, last, usable_bytes)[0]

    def spill_s(self, first: int, last: int, usable_bytes: int, bytes_per_s: float) -> float:
        """Seconds of a whole step that a card with layers first..last-1 waits for what is elsewhere."""
        away, weights_away = self._away(first, last, usable_bytes)
        if away <= 0:
            return 0.0
        before, after = self._sums[first], self._sums[last]
        passes = 2 if self._cost.trains else 1
        updates = 2 if self._cost.trains else 0
        reads = (after.reads - before.reads) / max(1, after.weights - before.weights)
        touched = updates * away + weights_away * passes * reads * self._micro_batches
        return touched / bytes_per_s

    def _away(self, first: int, last: int, usable_bytes: int) -> tuple[float, float]:
        """All bytes that lack room, and the weights among them."""
        before, after, cost = self._sums[first], self._sums[last], self._cost
        weights, trained = after.weights - before.weights, after.trained - before.trained
        stays = weights + self._bounds.at_least(first, last)
        peak = cost.state * trained + max(stays, weights + (1 + cost.temporaries) * trained)
        if peak <= usable_bytes:
            return peak - usable_bytes, 0.0
        pooled = (cost.state + cost.temporaries) * (after.pooled - before.pooled)
        return max(0.0, stays + pooled - usable_bytes), max(0.0, stays - usable_bytes)


class SpillCosts(RunCosts):
    """Costs of every run of layers, with what the run waits for spilled bytes.

    Args:
        profile: what was measured.
        topology: the cards, in the order of the line.
        estimate: what runs spill.
        usable_bytes: for each card of the line, the memory that may be filled.
        bytes_per_s: for each card of the line, how fast it reaches what is elsewhere.
        micro_batches: how many parts the batch is cut into.
        call_overhead_s: fixed cost of one call of one micro-batch, forward or backward, in seconds.
    """

    def __init__(
        self,
        profile: Profile,
        topology: Topology,
        estimate: SpillEstimate,
        *,
        usable_bytes: tuple[int, ...],
        bytes_per_s: tuple[float, ...],
        micro_batches: int,
        call_overhead_s: float,
    ) -> None:
        super().__init__(profile, topology, micro_batches=micro_batches, call_overhead_s=call_overhead_s)
        self._estimate = estimate
        self._of_card = list(zip(usable_bytes, bytes_per_s, strict=True))
        self._with_spill: dict[tuple[int, int, float], RunTable] = {}

    def table(self, card: int) -> RunTable:
        """The costs on the card at position `card` of the line; like cards share one table."""
        plain = super().table(card)
        usable, bytes_per_s = self._of_card[card]
        key = (id(plain), usable, bytes_per_s)
        if key not in self._with_spill:
            self._with_spill[key] = RunTable(
                busy_s=[self._busy_s(plain, first, usable, bytes_per_s) for first in range(self.layers + 1)],
                crossing_s=plain.crossing_s,
            )
        return self._with_spill[key]

    def _busy_s(self, plain: RunTable, first: int, usable: int, bytes_per_s: float) -> list[float]:
        """Of the runs that begin with `first`; those that end before it are never asked for."""
        spilling = (
            self._estimate.spill_s(first, last, usable, bytes_per_s) / self._micro_batches
            for last in range(first, self.layers + 1)
        )
        row = plain.busy_s[first]
        return row[:first] + [busy + spill for busy, spill in zip(row[first:], spilling, strict=True)]


def _sums(profile: Profile, trains: bool) -> list[_Sums]:
    reads = reads_of_layers(profile)
    each = (
        _Sums(
            weights=layer.weight_nbytes,
            trained=layer.trainable_nbytes * trains,
            pooled=(blocks.large + blocks.small) * trains,
            reads=layer.weight_nbytes * reads[position],
        )
        for position, layer in enumerate(profile.layers)
        for blocks in (trained_blocks(layer),)
    )
    nothing = _Sums(0, 0, 0, 0)
    return list(accumulate(each, lambda total, one: _Sums(*map(sum, zip(total, one, strict=True))), initial=nothing))
