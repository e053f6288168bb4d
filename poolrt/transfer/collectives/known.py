"""Copies for all cards that were made before: a mask that every layer reads is sent once, not once per layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from poolrt.errors import TransferError
from poolrt.transfer.move import Arrival

_Key = tuple[int, int]
"""id and version"""


class Copies(NamedTuple):
    """What was sent to the cards."""

    sources: Sequence[Tensor]
    """one tensor for all cards, or one for each"""
    versions: Sequence[int]
    """of the sources, when they were sent"""
    copies: Sequence[Tensor]
    """by card, with their history"""
    arrivals: Sequence[Arrival]
    """by card: what to wait for"""

    def check_unchanged(self) -> None:
        """See that all cards read the same.

        Raises:
            TransferError: if a source was changed in place since it was sent.
        """
        for source, version in zip(self.sources, self.versions, strict=True):
            if version_of(source) != version:
                raise TransferError(
                    f"a tensor of shape {tuple(source.shape)} on {source.device} was changed in place while other "
                    "cards were to read it as it was: a layer that is split over cards must leave its inputs alone; "
                    "let it work on a clone"
                )


class _Entry(NamedTuple):
    source: weakref.ref[Tensor]
    arrivals: Sequence[Arrival | None]
    """by card; None where the source lies itself"""
    versions: Sequence[int]
    """of what arrived"""


class KnownCopies:
    """The copies of one forward. They live no longer than their sources.

    Remembered is what needs no gradient: masks, rotary tables, positions. Hidden states are read by one layer, and
    copies of them that stay would undo what a checkpoint saves.
    """

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}

    def find(self, tensor: Tensor) -> Copies | None:
        """The copies of `tensor`, if neither it nor one of them has changed since."""
        if not _is_remembered(tensor):
            return None
        entry = self._entries.get((id(tensor), tensor._version))
        if entry is None or entry.source() is not tensor:
            return None
        sent = [arrival for arrival in entry.arrivals if arrival is not None]
        if any(version_of(arrival.tensor) != version for arrival, version in zip(sent, entry.versions, strict=True)):
            return None
        arrivals = [Arrival(tensor, crossed=False) if arrival is None else arrival for arrival in entry.arrivals]
        return Copies([tensor], [tensor._version], [arrival.tensor for arrival in arrivals], arrivals)

    def remember(self, copies: Copies) -> None:
        """Have these found by those who send the same again."""
        (tensor,) = copies.sources
        if not _is_remembered(tensor):
            return
        key = (id(tensor), tensor._version)
        arrivals = [arrival if arrival.crossed else None for arrival in copies.arrivals]
        versions = [version_of(arrival.tensor) for arrival in arrivals if arrival is not None]
        self._entries[key] = _Entry(weakref.ref(tensor, self._forget(key)), arrivals, versions)

    def clear(self) -> None:
        """Let go of every copy."""
        self._entries.clear()

    def _forget(self, key: _Key) -> Callable[[weakref.ref[Tensor]], None]:
        known = weakref.ref(self)

        def forget(_dead: weakref.ref[Tensor]) -> None:
            if (still := known()) is not None:
                still._entries.pop(key, None)

        return forget


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_remembered(tensor: Tensor) -> bool:
    return not tensor.requires_grad and not tensor.is_inference()
