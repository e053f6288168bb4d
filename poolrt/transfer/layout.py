"""Where the elements of a strided tensor lie, as a plain value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the elements of one tensor lie."""

    address: int
    """of the element whose indices are all 0"""
    item_nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """in elements; 0 repeats an element, a negative one steps backwards"""

    @property
    def elements(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def first_address(self) -> int:
        """Of the lowest byte; `address` if there is none."""
        return self.address + self.item_nbytes * lowest_offset(self.shape, self.strides)

    @property
    def end_address(self) -> int:
        """One past the highest byte."""
        if self.elements == 0:
            return self.address
        highest = sum((extent - 1) * max(stride, 0) for extent, stride in zip(self.shape, self.strides, strict=True))
        return self.address + self.item_nbytes * (highest + 1)


def lowest_offset(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Of the lowest element from the one whose indices are all 0, in elements: 0 or less."""
    if math.prod(shape) == 0:
        return 0
    return sum((extent - 1) * min(stride, 0) for extent, stride in zip(shape, strides, strict=True))
