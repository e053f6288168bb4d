"""Which cards should run layers together: equal groups along the fastest links.

four cards, two bridges    0 ==== 1 ---- 2 ==== 3        groups of two: (0, 1) (2, 3); groups of four: all
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from poolrt.topology.route import route
from poolrt.topology.topology import Topology

Grouping = tuple[tuple[int, ...], ...]
"""for each group the indices of its cards, the lead card first"""


def groupings(topology: Topology) -> list[Grouping]:
    """Every way to make equal groups of several cards that uses all of them, the largest groups first."""
    cards = len(topology)
    return [grouping(topology, size) for size in range(cards, 1, -1) if cards % size == 0]


def grouping(topology: Topology, size: int) -> Grouping:
    """Groups of so many cards, each begun with the fastest link that is left and filled by the nearest cards.

    The largest card of a group leads it, since what is not split is there.
    """
    left = list(range(len(topology)))
    groups: list[tuple[int, ...]] = []
    while left:
        group = list(max(combinations(left, 2), key=lambda pair: _speed(topology, pair)))
        while len(group) < size:
            others = (card for card in left if card not in group)
            group.append(max(others, key=lambda card: _speed(topology, (*group, card))))
        groups.append(tuple(sorted(group, key=lambda card: (-topology.cards[card].memory_bytes, card))))
        left = [card for card in left if card not in group]
    return tuple(sorted(groups, key=min))


def _speed(topology: Topology, cards: Iterable[int]) -> float:
    """Of the slowest way between two of these cards; the first of equals is taken, so low indices stay together."""
    return min(_ways(topology, cards))


def _ways(topology: Topology, cards: Iterable[int]) -> Iterator[float]:
    for pair in combinations(cards, 2):
        yield route(topology, *pair).bytes_per_s
        yield route(topology, *pair[::-1]).bytes_per_s
