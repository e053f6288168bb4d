"""Links of which every direction has a speed of its own."""

from __future__ import annotations

from itertools import permutations

from poolrt.virtual_cards.links import set_link

CARDS = 3


def slow_down() -> None:
    """The slowest link, from card 0 to card 1, carries 10 MB a second, the next one 20."""
    for number, (source, target) in enumerate(permutations(range(CARDS), 2)):
        set_link(source, target, bytes_per_s=10e6 * (1 + number))
