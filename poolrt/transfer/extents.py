"""Copies of pool tensors, extent by extent: a copy that runs over pages of several cards may go wrong in the driver.

source   | card 0 ................. | card 1 ....... |
target   | card 1 ....... | host ................... |
pieces   | 0 -> 1         | 0 -> h  | 1 -> h         |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.transfer.form import as_bytes
from poolrt.transfer.routes import HOST


class Piece(NamedTuple):
    """A part of a copy whose bytes lie in one place and go to one place."""

    source: Tensor
    target: Tensor
    came_from: torch.device
    goes_to: torch.device


def pieces(source: Tensor, target: Tensor) -> list[Piece]:
    """The copy cut wherever the place of the source's or the target's bytes changes.

    One piece for tensors outside of pools, and for those that are no plain bytes: a kernel copies them, which reads
    and writes through the mapping.
    """
    whole = [Piece(source, target, source.device, target.device)]
    if not _C.pools_in_use():
        return whole
    flat = as_bytes(source, target)
    if flat is None:
        return whole
    places = (_places(flat[0]), _places(flat[1]))
    if len(places[0]) == len(places[1]) == 1:
        return [Piece(source, target, places[0][0][0], places[1][0][0])]
    return list(_cut(*flat, *places))


def _places(flat: Tensor) -> list[tuple[torch.device, int]]:
    """(device, bytes) of the stretches of a flat tensor, in order."""
    found = _C.extents_at(flat.data_ptr(), flat.nbytes) if flat.device.type != "cpu" else []
    if not found:
        return [(flat.device, flat.nbytes)]
    return [(HOST if card is None else torch.device(flat.device.type, card), nbytes) for card, nbytes in found]


def _cut(
    source: Tensor, target: Tensor, came_from: list[tuple[torch.device, int]], goes_to: list[tuple[torch.device, int]]
) -> Iterator[Piece]:
    at = 0
    sources, targets = iter(came_from), iter(goes_to)
    (here, left), (there, room) = next(sources), next(targets)
    while at < source.nbytes:
        nbytes = min(left, room)
        yield Piece(source.narrow(0, at, nbytes), target.narrow(0, at, nbytes), here, there)
        at, left, room = at + nbytes, left - nbytes, room - nbytes
        if left == 0:
            here, left = next(sources, (here, 0))
        if room == 0:
            there, room = next(targets, (there, 0))
