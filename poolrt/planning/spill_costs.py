"""What a run of layers costs one card that spills, estimated quickly from sums made once.

For the search only: what is found with it is then predicted exactly. `bounds` says what stays at least, and that is
close wherever there is something to spill.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Spiller(NamedTuple):
    """One card of a stage, as far as the estimate of its spilling needs it."""

    estimate: SpillEstimate
    """of what runs of layers spill on it"""
    usable_bytes: int
    """the memory that may be filled"""
    bytes_per_s: float
    """how fast it reaches what is elsewhere"""

    def spill_s(self, first: int, last: int) -> float:
        """See `SpillEstimate.spill_s`."""
        return self.estimate.spill_s(first, last, self.usable_bytes, self.bytes_per_s)


class SpillCosts(RunCosts):
    """Costs of every run of layers, with what the run waits for spilled bytes.

    Args:
        profile: what was measured.
        topology: the lead cards of the stages, in the order of the line.
        spillers: for each stage of the line its cards; it waits for the slowest.
        micro_batches: how many parts the batch is cut into.
        call_overhead_s: fixed cost of one call of one micro-batch, forward or backward, in seconds.
        profiles: for each stage of the line, the profile with its seconds; None if all have those measured.
    """

    def __init__(
        self,
        profile: Profile,
        topology: Topology,
        spillers: Sequence[tuple[Spiller, ...]],
        *,
        micro_batches: int,
        call_overhead_s: float,
        profiles: Sequence[Profile] | None = None,
    ) -> None:
        super().__init__(
            profile, topology, micro_batches=micro_batches, call_overhead_s=call_overhead_s, profiles=profiles
        )
        self._spillers = spillers
        self._with_spill: dict[tuple[object, ...], RunTable] = {}

    def table(self, card: int) -> RunTable:
        """The costs on the stage at position `card` of the line; like stages share one table."""
        plain = super().table(card)
        key = (id(plain), *((id(one.estimate), *one[1:]) for one in self._spillers[card]))
        if key not in self._with_spill:
            self._with_spill[key] = RunTable(
                busy_s=[self._busy_s(plain, first, self._spillers[card]) for first in range(self.layers + 1)],
                crossing_s=plain.crossing_s,
            )
        return self._with_spill[key]

    def _busy_s(self, plain: RunTable, first: int, spillers: tuple[Spiller, ...]) -> list[float]:
        """Of the runs that begin with `first`; those that end before it are never asked for."""
        spilling = (
            max(one.spill_s(first, last) for one in spillers) / self._micro_batches
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
