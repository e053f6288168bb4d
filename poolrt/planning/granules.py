"""How many bytes a tensor takes in the pool.

The pool hands out whole granules. A large tensor has granules of its own, and what it leaves of the last one is lost;
small tensors share granules.

    granules      |-------|-------|-------|
    a large one   ###########.....                 ends within its second granule: the dots are lost
    small ones                    a b cc d         share the third

A granule is 2 MiB, as a GPU's driver maps memory. A layer whose tensors are not known is taken to have so many of the
size of its biggest gradient, each of which loses a whole granule: on the safe side where tensors are of like size.
"""

from __future__ import annotations

from dataclasses import dataclass

from poolrt.planning.profile import LayerFacts
from poolrt.units import MIB

GRANULE = 2 * MIB
"""the unit in which the pool takes memory from a card, a peer or the host"""

SMALL = MIB
"""the largest tensor that shares a granule with others"""

SMALL_STEP = 512
"""small tensors are rounded up to this"""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Bytes of several tensors in the pool; sums of them share granules."""

    large: int = 0
    """in whole granules"""
    small: int = 0
    """of tensors that share granules"""

    def __add__(self, other: Blocks) -> Blocks:
        return Blocks(large=self.large + other.large, small=self.small + other.small)

    def __mul__(self, copies: int) -> Blocks:
        return Blocks(large=self.large * copies, small=self.small * copies)

    @property
    def nbytes(self) -> int:
        """What all of them take together."""
        return self.large + whole_granules(self.small)


def whole_granules(nbytes: int) -> int:
    """`nbytes` rounded up to granules."""
    return round_up(nbytes, GRANULE)


def block_nbytes(nbytes: int) -> int:
    """What the pool hands out for one tensor of `nbytes`."""
    return whole_granules(nbytes) if nbytes > SMALL else round_up(nbytes, SMALL_STEP)


def granules_within(nbytes: int) -> int:
    """`nbytes` rounded down to granules, never below zero."""
    return max(0, nbytes // GRANULE * GRANULE)


def round_up(nbytes: int, unit: int) -> int:
    """`nbytes` rounded up to a multiple of `unit`."""
    return -(-nbytes // unit) * unit


def trained_blocks(layer: LayerFacts) -> Blocks:
    """The layer's trained parameters in the pool: also what one copy of optimizer state takes."""
    return _blocks(layer.trained_tensors, layer.trainable_nbytes, layer.largest_gradient_nbytes)


def weight_blocks(layer: LayerFacts) -> Blocks:
    """The layer's weights in the pool, trained and frozen."""
    frozen = layer.weight_nbytes - layer.trainable_nbytes
    return trained_blocks(layer) + _blocks(layer.frozen_tensors, frozen, layer.largest_gradient_nbytes)


def _blocks(tensors: tuple[int, ...], nbytes: int, largest: int) -> Blocks:
    if tensors:
        return Blocks(
            large=sum(whole_granules(size) for size in tensors if size > SMALL),
            small=sum(round_up(size, SMALL_STEP) for size in tensors if size <= SMALL),
        )
    if nbytes <= SMALL or 0 < largest <= SMALL:
        return Blocks(small=round_up(nbytes, SMALL_STEP))
    lost = -(-nbytes // largest) * GRANULE if largest else GRANULE
    return Blocks(large=whole_granules(nbytes + lost - 1))
