"""Whether two tensors share a byte, and whether one holds an element twice. Exact where that is cheap to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from poolrt.errors import ConfigurationError
from poolrt.transfer.layout import Layout

_MOST_WORK: Any = 100_000
"""candidates that NumPy may look at, some milliseconds"""
_MOST_OFFSETS = 1_000_000
"""elements whose offsets are made, some milliseconds too"""


def refuse_overlap(target: Layout, source: Layout) -> None:
    """Raises a ConfigurationError where a copy would read what it has written, or write an element twice."""
    if repeats(target):
        raise ConfigurationError(
            f"the target holds elements twice (shape {target.shape}, strides {target.strides}), so what ends there is "
            "left to chance; copy to a tensor of its own, as .contiguous() makes one"
        )
    if share_memory(target, source):
        raise ConfigurationError(
            f"source and target overlap (bytes {_range(source)} and {_range(target)}); clone() the source first"
        )


def _range(layout: Layout) -> str:
    return f"{layout.first_address:#x} to {layout.end_address:#x}"


def repeats(layout: Layout) -> bool:
    """Whether two indices mean one element; True also where finding out would take too long.

    Strides that grow past what the dimensions before them reach are the common case. Of others every offset is made.
    """
    if layout.elements <= 1:
        return False
    steps = zip(layout.strides, layout.shape, strict=True)
    dimensions = sorted((abs(stride), extent) for stride, extent in steps if extent > 1)
    reach = 0
    for stride, extent in dimensions:
        if stride <= reach:
            return stride == 0 or layout.elements > _MOST_OFFSETS or _meet(dimensions)
        reach += stride * (extent - 1)
    return False


def _meet(dimensions: Sequence[tuple[int, int]]) -> bool:
    """Whether two of the offsets that these (stride, extent) lead to are equal."""
    offsets = numpy.zeros(1, numpy.int64)
    for stride, extent in dimensions:
        offsets = (offsets[:, None] + numpy.arange(extent) * stride).ravel()
    return len(numpy.unique(offsets)) < len(offsets)


def share_memory(one: Layout, other: Layout) -> bool:
    """Whether any byte belongs to both; True also where finding out would take too long.

    Which bytes two strided tensors share is a bounded Diophantine problem that NumPy solves from addresses alone,
    without a look at the memory (numpy.shares_memory).
    """
    if one.elements == 0 or other.elements == 0:
        return False
    if one.end_address <= other.first_address or other.end_address <= one.first_address:
        return False
    try:
        return bool(numpy.shares_memory(_as_array(one), _as_array(other), max_work=_MOST_WORK))
    except numpy.exceptions.TooHardError:
        return True


class _Addresses:
    """Shows NumPy where elements would lie. Nobody reads them: they may be on a card."""

    def __init__(self, layout: Layout) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": f"|V{layout.item_nbytes}",
            "data": (layout.address, False),
            "shape": layout.shape,
            "strides": tuple(stride * layout.item_nbytes for stride in layout.strides),
        }


def _as_array(layout: Layout) -> numpy.ndarray[Any, Any]:
    return numpy.asarray(_Addresses(layout))


def runs_overlap(runs: numpy.ndarray[Any, Any]) -> bool:
    """Whether a target shares a byte with another or a source, of rows (target address, source address, bytes)."""
    targets, sources, sizes = runs[runs[:, 2] > 0].T
    if len(sizes) == 0:
        return False
    order = numpy.argsort(targets, kind="stable")
    begins, ends = targets[order], (targets + sizes)[order]
    if bool((begins[1:] < ends[:-1]).any()):
        return True
    # targets are now known to be apart, so the last one that begins before a source ends is the only one it may touch
    last = numpy.searchsorted(begins, sources + sizes, side="left") - 1
    return bool(((last >= 0) & (ends[numpy.maximum(last, 0)] > sources)).any())
