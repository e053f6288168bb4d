"""The positions that a strided copy visits, in as few dimensions as will do. Pure.

   shape (4, 3, 8)   target strides (24, 8, 1)   source strides (1, 32, 4)      in elements

1. dimensions of one element go; negative steps of the target turn round, together with the source's
2. sorted by the target's strides, so that neighbouring threads write neighbouring elements
3. neighbours that follow one another in both tensors become one dimension
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.dtypes import WORDS
from poolrt.transfer.layout import Layout, lowest_offset

MOST_DIMENSIONS = 8
WIDEST_NBYTES = max(WORDS)
"""of one load or store"""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a kernel steps through: the last dimension is the innermost. Counted in elements, or in packs of some.

    A pack is a few neighbouring elements that one thread loads and stores at once. Steps of the last dimension are
    packs; strides and starts always count elements.
    """

    extents: tuple[int, ...]
    target_strides: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_start: int = 0
    """of the first element, from the lowest one"""
    source_start: int = 0

    @property
    def packs(self) -> int:
        """How many positions there are."""
        return math.prod(self.extents)

    @property
    def highest_position(self) -> int:
        """The farthest that an element lies from the lowest, in either tensor."""
        starts = ((self.target_start, self.target_strides), (self.source_start, self.source_strides))
        return max(
            start + sum((extent - 1) * max(stride, 0) for extent, stride in zip(self.extents, strides, strict=True))
            for start, strides in starts
        )

    def in_packs(self, items: int) -> Walk:
        """The same positions, `items` neighbouring elements at a time. They must divide the last extent."""
        return replace(
            self,
            extents=(*self.extents[:-1], self.extents[-1] // items),
            target_strides=(*self.target_strides[:-1], items),
            source_strides=(*self.source_strides[:-1], items),
        )

    def in_wider_items(self, items: int) -> Walk:
        """The same bytes as elements that are `items` times as wide. They must divide all strides but the last."""

        def fewer(strides: tuple[int, ...]) -> tuple[int, ...]:
            return (*(stride // items for stride in strides[:-1]), 1)

        return replace(
            self,
            extents=(*self.extents[:-1], self.extents[-1] // items),
            target_strides=fewer(self.target_strides),
            source_strides=fewer(self.source_strides),
            target_start=self.target_start // items,
            source_start=self.source_start // items,
        )

    def in_narrower_items(self, items: int) -> Walk:
        """The same bytes as elements of which `items` make one of before."""
        return Walk(
            extents=(*self.extents, items),
            target_strides=(*(stride * items for stride in self.target_strides), 1),
            source_strides=(*(stride * items for stride in self.source_strides), 1),
            target_start=self.target_start * items,
            source_start=self.source_start * items,
        )

    def takes_together(self, items: int) -> bool:
        """Whether `items` neighbouring elements are neighbours in both tensors, from every start of a row on."""
        strides = (*self.target_strides[:-1], *self.source_strides[:-1])
        return (
            self.target_strides[-1] == self.source_strides[-1] == 1
            and self.extents[-1] % items == 0
            and all(offset % items == 0 for offset in (*strides, self.target_start, self.source_start))
        )


def walk_of(target: Layout, source: Layout) -> Walk:
    """The walk over all elements of two tensors of one shape, at least one element.

    Raises:
        ConfigurationError: if it takes more than eight dimensions.
    """
    dimensions = [
        _Dimension(*dimension) for dimension in zip(target.shape, target.strides, source.strides, strict=True)
    ]
    dimensions = [dimension.forwards() for dimension in dimensions if dimension.extent > 1]
    dimensions.sort(key=lambda dimension: (dimension.target, abs(dimension.source)), reverse=True)
    merged = _merged(dimensions)
    if len(merged) > MOST_DIMENSIONS:
        raise ConfigurationError(
            f"a copy between shapes of {len(merged)} dimensions that cannot be joined; kernels step through up to "
            f"{MOST_DIMENSIONS}: copy slices one after another, or make one side contiguous"
        )
    extents, target_strides, source_strides = zip(*((d.extent, d.target, d.source) for d in merged), strict=True)
    return Walk(
        extents=extents,
        target_strides=target_strides,
        source_strides=source_strides,
        source_start=-lowest_offset(extents, source_strides),
    )


@dataclass(frozen=True)
class _Dimension:
    extent: int
    target: int
    source: int

    def forwards(self) -> _Dimension:
        return self if self.target >= 0 else _Dimension(self.extent, -self.target, -self.source)

    def follows(self, inner: _Dimension) -> bool:
        """Whether stepping here is what one step more than `inner` has would be."""
        return self.target == inner.target * inner.extent and self.source == inner.source * inner.extent


def _merged(dimensions: list[_Dimension]) -> list[_Dimension]:
    """Outermost first, and at least one."""
    merged: list[_Dimension] = []
    for inner in dimensions:
        if merged and merged[-1].follows(inner):
            outer = merged.pop()
            inner = _Dimension(outer.extent * inner.extent, inner.target, inner.source)
        merged.append(inner)
    return merged or [_Dimension(1, 1, 1)]
