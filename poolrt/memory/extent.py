"""Where a tensor's bytes lie, and what a pool holds: values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from poolrt.units import format_nbytes


class Extent(NamedTuple):
    """A stretch of one tensor whose pages lie in one place."""

    card: int | None
    """index in the pool's topology; None is the host"""
    nbytes: int


def clipped(extents: Iterable[Extent], skip: int, nbytes: int) -> list[Extent]:
    """The part of `extents` from byte `skip` on, `nbytes` long; neighbours in one place become one.

    extents    | card 0: 64 | card 1: 38 |
    skip 4     ....|--------- 96 -------|..      ->  | card 0: 60 | card 1: 36 |
    """
    found: list[Extent] = []
    for extent in _overlaps(extents, skip, skip + nbytes):
        if found and found[-1].card == extent.card:
            found[-1] = Extent(extent.card, found[-1].nbytes + extent.nbytes)
        else:
            found.append(extent)
    return found


def _overlaps(extents: Iterable[Extent], begin: int, end: int) -> Iterator[Extent]:
    at = 0
    for card, nbytes in extents:
        overlap = min(at + nbytes, end) - max(at, begin)
        if overlap > 0:
            yield Extent(card, overlap)
        at += nbytes


@dataclass(frozen=True, kw_only=True)
class TierStats:
    """One place: a card, or the host."""

    card: int | None
    limit_nbytes: int
    """the most the pool may take here"""
    mapped_nbytes: int
    """what it has taken"""
    peak_mapped_nbytes: int


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """What a pool holds, in bytes, at one moment.

    sum of the tiers' mapped = live + cached + deferred
    """

    tiers: tuple[TierStats, ...]
    live_nbytes: int
    """handed out"""
    requested_nbytes: int
    """of those, what was asked for before rounding"""
    cached_nbytes: int
    """free, kept mapped for the next request"""
    deferred_nbytes: int
    """free once a card has finished what it was doing"""
    condemned_nbytes: int
    """of the cached, what the driver would not take back; tried again at the next trim()"""
    spilled_nbytes: int
    """handed out, and not on the home card"""
    peak_live_nbytes: int
    hits: int
    """requests served without a driver call"""
    misses: int
    evictions: int
    """cached segments given back to make room"""
    refusals: int
    driver_calls: int
    fragmentation: float
    """0 when all that is cached is one piece, towards 1 as it falls apart"""

    def tier(self, card: int | None) -> TierStats:
        """The tier of `card`; of the host for None."""
        return next(tier for tier in self.tiers if tier.card == card)

    def __str__(self) -> str:
        tiers = ", ".join(
            f"{'host' if tier.card is None else f'card {tier.card}'} {format_nbytes(tier.mapped_nbytes)} of "
            f"{format_nbytes(tier.limit_nbytes)}"
            for tier in self.tiers
        )
        return (
            f"{format_nbytes(self.live_nbytes)} live ({format_nbytes(self.spilled_nbytes)} of it spilled), "
            f"{format_nbytes(self.cached_nbytes)} cached, {format_nbytes(self.deferred_nbytes)} deferred; {tiers}"
        )
