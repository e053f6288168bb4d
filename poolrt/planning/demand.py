"""What one card takes from the pool when its layers do not fit it, and what stays outside.

    memory that may be used  |============================================|
    as planned without pool  | weights | gradients | activations | optimizer ........|  too much
    optimizer from the pool  | weights | gradients | activations | ---- room --------|  the rest goes elsewhere
    and some weights too     | weig | gradients | activations .................| room|  if that is not enough

First the optimizer's state is taken from the pool, with the temporaries of its step: they are touched once a step.
Where even all of it is too little, weights follow, of the layers that are read least often; among equals the largest
first. What is left of the card is room for the pool, so of what is pooled only what has to goes elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from poolrt.planning.bounds import Bounds
from poolrt.planning.granules import Blocks, granules_within, trained_blocks, weight_blocks, whole_granules
from poolrt.planning.memory import MemoryModel
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile


@dataclass(frozen=True, kw_only=True)
class PooledLayer:
    """A layer whose weights are pooled."""

    position: int
    """in the profile"""
    nbytes: int
    """of its weights in the pool"""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a card takes from the pool, in bytes, and what it holds outside."""

    spills: bool
    """False: everything is on the card as without a pool, and room is what it can give to others"""
    stays: PredictedBytes
    """outside the pool at the highest moment"""
    stepping: PredictedBytes
    """outside the pool while the optimizer's step runs"""
    room: int
    """whole granules that are left beside `stays`"""
    layers: tuple[PooledLayer, ...] = ()
    """what is read most often comes first: it should lie nearest"""
    optimizer: int = 0
    temporaries: int = 0

    @property
    def weights(self) -> int:
        """Bytes of all pooled weights."""
        return sum(layer.nbytes for layer in self.layers)


class Demands:
    """The demands of cards with any layers, for one profile, optimizer and number of micro-batches.

    Args:
        profile: what was measured; layers are meant by their positions in it.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.
    """

    def __init__(self, profile: Profile, *, micro_batches: int, optimizer: str) -> None:
        self._profile = profile
        self._memory = MemoryModel(profile, micro_batches=micro_batches, optimizer=optimizer)
        self._bounds = Bounds(profile, micro_batches=micro_batches, optimizer=optimizer)
        self._cost = optimizer_cost(optimizer)
        self._trained = [trained_blocks(layer) for layer in profile.layers]
        self._weights = [weight_blocks(layer) for layer in profile.layers]
        self._reads = reads_of_layers(profile)
        self._unspillable: dict[tuple[int, int, bool], int] = {}

    def of(self, layers: Iterable[int], *, usable_bytes: int, gathers: bool) -> Demand:
        """The least that a card with these layers can take from the pool.

        Where the card is over-full whatever is pooled, everything that can be is, and `stays` is too much.

        Args:
            layers: positions in the profile.
            usable_bytes: the memory of the card that may be filled.
            gathers: whether the whole outputs are put together on this card.
        """
        held = sorted(layers)
        peak = self._memory.peak(held, gathers=gathers)
        if peak.total <= usable_bytes:
            return Demand(spills=False, stays=peak, stepping=peak, room=granules_within(usable_bytes - peak.total))
        return self._spilling(held, self._memory.staying(held, gathers=gathers), usable_bytes)

    def fits(self, first: int, last: int, *, usable_bytes: float, gathers: bool) -> bool:
        """Whether a card has room for what stays of layers first..last-1 if everything that can be spilled is."""
        if self._bounds.at_most(first, last) <= usable_bytes or self._bounds.at_least(first, last) > usable_bytes:
            return self._bounds.at_most(first, last) <= usable_bytes
        key = (first, last, gathers)
        if key not in self._unspillable:
            held = range(first, last)
            self._unspillable[key] = self._memory.staying(held, gathers=gathers).total - self._weigh(held)
        return self._unspillable[key] <= usable_bytes

    def _spilling(self, held: Sequence[int], stays: PredictedBytes, usable_bytes: int) -> Demand:
        spilled = self._coldest(held, stays.total - usable_bytes)
        gone = self._weigh(spilled)
        stays = replace(stays, weights=stays.weights - gone)
        trainable = self._memory.trainable_nbytes(held)
        state = sum((self._trained[position] for position in held), Blocks()) if trainable else Blocks()
        return Demand(
            spills=True,
            stays=stays,
            stepping=PredictedBytes(weights=self._weigh(held) - gone, gradients=trainable),
            room=granules_within(usable_bytes - stays.total),
            layers=self._pooled(spilled[::-1]),
            optimizer=(state * self._cost.state).nbytes,
            temporaries=(state * self._cost.temporaries).nbytes,
        )

    def _weigh(self, positions: Iterable[int]) -> int:
        return sum(self._profile.layers[position].weight_nbytes for position in positions)

    def _coldest(self, held: Sequence[int], too_much: int) -> list[int]:
        """As many layers as it takes for their weights to be at least `too_much` bytes, coldest first."""
        facts = self._profile.layers
        candidates = [position for position in held if facts[position].weight_nbytes]
        chosen: list[int] = []
        for position in sorted(candidates, key=lambda x: (self._reads[x], -facts[x].weight_nbytes)):
            if too_much <= 0:
                break
            chosen.append(position)
            too_much -= facts[position].weight_nbytes
        return chosen

    def _pooled(self, positions: Sequence[int]) -> tuple[PooledLayer, ...]:
        """The layers with their bytes; the last granule that small tensors share is the last layer's."""
        blocks = [self._weights[position] for position in positions]
        sizes = [block.large + block.small for block in blocks]
        if sizes:
            sizes[-1] += whole_granules(sum(sizes)) - sum(sizes)
        return tuple(PooledLayer(position=p, nbytes=nbytes) for p, nbytes in zip(positions, sizes, strict=True))


def reads_of_layers(profile: Profile) -> list[int]:
    """For each layer, how often one pass of one micro-batch reads its weights: its calls, and those of tied layers."""
    calls = [0] * len(profile.layers)
    positions = {layer.name: position for position, layer in enumerate(profile.layers)}
    for call in profile.calls:
        calls[positions[call.layer]] += 1
    reads = list(calls)
    for tied in profile.tied:
        home, *others = (positions[name] for name in tied.layers)
        reads[home] += sum(calls[other] for other in others)
    return reads
