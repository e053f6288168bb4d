"""Where the row weight may be cut: between heads, between groups of heads, anywhere.

    columns of the row weight     |  head 0 |  head 1 |  head 2 |  head 3 |        two heads share keys and values
    needs of neighbours overlap   in q and k inside a head; in k and v between 0 and 1; in nothing between 1 and 2

    levels    1 (cuts through a head)   <   head   <   group

A cut is best where neighbours need nothing in common: the coarsest level. With fewer groups than cards, some cards
share a group, and it is cut at the next finer level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Range, apportion
from poolrt.runtime.regions.finding.needs import Need, Needs

_ALIGNMENT = 64
"""entries: a cut at a multiple keeps matrix products on their fast paths"""
_MANY = 16
"""granules per card, so that shares can still be met"""


def levels(needs: Needs) -> tuple[int, ...]:
    """Granules of the cut dimension, ascending: each with less in common across its cuts than the one before."""
    first = needs.of((0, 1))
    found: list[int] = []
    least: int | None = None
    for granule in _divisors(needs.size):
        before = first if granule == 1 else needs.of((granule - 1, granule))
        common = _in_common(before, needs.of((granule, granule + 1)))
        if least is None or common < least:
            found.append(granule)
            least = common
        if least == 0:
            break
    return tuple(found)


def allot(size: int, granules: Sequence[int], shares: Sequence[float]) -> tuple[Range, ...]:
    """A range of the cut dimension for each card, in proportion to `shares`, cut at the coarsest level that can be.

    Raises:
        ConfigurationError: if there are fewer granules than cards at every level.
    """
    coarsest = _aligned(size, granules[-1], len(shares))
    if size // coarsest >= len(shares):
        counts: tuple[int, ...] = apportion(size, shares, coarsest)
    elif len(granules) > 1:
        counts = _shared_granules(size // coarsest, coarsest, granules[-2], shares)
    else:
        counts = apportion(size, shares, coarsest)
    stops = [sum(counts[: card + 1]) for card in range(len(counts))]
    return tuple((stop - count, stop) for stop, count in zip(stops, counts, strict=True))


def _aligned(size: int, granule: int, cards: int) -> int:
    """A coarser granule that suits the kernels of a GPU, where that still leaves every card a good number of them."""
    while granule < _ALIGNMENT and size % (2 * granule) == 0 and size // (2 * granule) >= _MANY * cards:
        granule *= 2
    return granule


def _shared_granules(groups: int, group: int, granule: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Several cards per group: the way to deal cards out that leaves groups the most alike in speed."""
    ways = [way for way in _runs(len(shares), groups) if all(stop - start <= group // granule for start, stop in way)]
    if not ways:
        raise ConfigurationError(f"{groups * group // granule} parts cannot be dealt out to {len(shares)} cards")

    def unevenness(way: Sequence[Range]) -> float:
        return sum(sum(shares[start:stop]) ** 2 for start, stop in way)

    best = min(ways, key=unevenness)
    return tuple(count for start, stop in best for count in apportion(group, shares[start:stop], granule))


def _runs(count: int, parts: int) -> Iterator[list[Range]]:
    """All ways to cut 0..count into so many runs."""
    for cuts in combinations(range(1, count), parts - 1):
        bounds = (0, *cuts, count)
        yield list(pairwise(bounds))


def _divisors(size: int) -> list[int]:
    return [number for number in range(1, size // 2 + 1) if size % number == 0]


def _in_common(a: Need, b: Need) -> int:
    """How many entries both need, of weights and inputs that are not needed whole by either."""
    return sum(
        _entries_in_common(mine, theirs)
        for mine, theirs in ((a[name], b[name]) for name in a)
        if mine is not None and theirs is not None and not (_all(mine) and _all(theirs))
    )


def _entries_in_common(a: Sequence[Tensor], b: Sequence[Tensor]) -> int:
    count = 1
    for mine, theirs in zip(a, b, strict=True):
        count *= int((mine & theirs).sum())
    return count


def _all(need: Sequence[Tensor]) -> bool:
    return all(bool(used.all()) for used in need)
