"""Which way a collective goes: by size, by number of cards, by the links between them. Pure.

    one shot     few bytes, or two cards: one step, whatever it carries
    two shots    more bytes: two steps, but 2 / n of the bytes
    ring         where some pair has no link of its own: n links will do

Where n - 1 whole tensors come in against 2 (n - 1) / n of one, and a further step costs a link's latency, the two are
even at

    S = latency x bandwidth / ((n - 1) (1 - 2 / n))

latency x bandwidth is the size at which a copy has half the link's speed. The default is what a sweep of single copies
between two RTX A6000 over NVLink fits (6.7 us, 50.9 GB/s: 331 KiB), which gives 221 KiB for 4 cards and 63 KiB for 8;
published crossovers of one-shot and two-shot all-reduce over PCIe lie at 64 to 128 KiB for 8 cards (vllm#50576). Pass
what was measured on the machine instead.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from typing import Literal

from poolrt.units import KIB

Algorithm = Literal["one shot", "two shots", "ring"]
Pair = tuple[int, int]
"""(source card, target card)"""

_MOST_TRIED = 8
"""cards whose every order is looked at: 5040 rings"""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Sizes at which another way is the faster one."""

    half_speed_nbytes: int = 331 * KIB
    """of a copy at half its link's speed: latency x bandwidth"""
    ring_from_nbytes: int | None = None
    """from which size on a ring is taken though all pairs have links: where those share a bridge; None for never"""

    def one_shot_up_to(self, cards: int) -> float:
        """Bytes of a tensor up to which one shot is the fastest; infinite for two cards, which gain nothing."""
        if cards <= 2:
            return float("inf")
        return self.half_speed_nbytes / ((cards - 1) * (1 - 2 / cards))


def choose(nbytes: int, cards: int, unlinked: Set[Pair] = frozenset(), crossover: Crossover | None = None) -> Algorithm:
    """The way for a tensor of `nbytes` among `cards` cards.

    Args:
        nbytes: of one card's tensor.
        cards: how many.
        unlinked: ordered pairs that have no link of their own.
        crossover: what was measured; by default what others have published.
    """
    crossover = crossover or Crossover()
    if nbytes <= crossover.one_shot_up_to(cards):
        return "one shot"
    if unlinked or (crossover.ring_from_nbytes is not None and nbytes >= crossover.ring_from_nbytes):
        return "ring"
    return "two shots"


@lru_cache
def ring_order(cards: int, unlinked: frozenset[Pair] = frozenset()) -> tuple[int, ...]:
    """An order of the cards, the last beside the first, that needs the fewest pairs without a link.

    For up to eight cards every order is tried; the first of the best is taken. More stay in their own order.
    """
    if not unlinked or cards > _MOST_TRIED:
        return tuple(range(cards))

    def missing(rest: tuple[int, ...]) -> int:
        return sum(pair in unlinked for pair in pairwise((0, *rest, 0)))

    return (0, *min(permutations(range(1, cards)), key=missing))
