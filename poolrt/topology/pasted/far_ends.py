"""Which card sits at which PCI address, and how many NVLinks lead from card to card.

`nvidia-smi nvlink -R` names far ends by PCI address but never says the address of the card it is listing. nvidia-smi
numbers cards in the order of their addresses, so where every card is somebody's far end the sorted addresses are the
cards in order:

    GPU 0: far end d5:00.0         sorted: c2:00.0  d5:00.0
    GPU 1: far end c2:00.0         card:      0        1

Where all cards see the same far ends, those are NVSwitches, and every link of a card leads to every other card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations


def links_by_pair(
    far_ends: Mapping[int, Sequence[str]], addresses: Mapping[int, str | None]
) -> dict[tuple[int, int], int]:
    """How many active NVLinks lead from one card to another.

    Args:
        far_ends: card -> the PCI address behind each of its active links; empty if not seen.
        addresses: card -> its own PCI address, None if not seen.

    Returns:
        Only pairs of cards with links that could be told; empty if addresses cannot be matched to cards.
    """
    linked = {card: list(ends) for card, ends in far_ends.items() if ends}
    if behind_switches(far_ends):
        return {(a, b): min(len(linked[a]), len(linked[b])) for a, b in permutations(linked, 2)}
    card_at = {address: card for card, address in addresses.items() if address} or addresses_in_order(far_ends)
    counts = Counter(
        (card, card_at[end]) for card, ends in linked.items() for end in ends if end in card_at and card_at[end] != card
    )
    return dict(counts)


def behind_switches(far_ends: Mapping[int, Sequence[str]]) -> bool:
    """Whether all cards that have links see the same far ends: those are switches."""
    linked = [frozenset(ends) for ends in far_ends.values() if ends]
    return len(linked) > 1 and len(set(linked)) == 1


def addresses_in_order(far_ends: Mapping[int, Sequence[str]]) -> dict[str, int]:
    """Address -> card by their order; empty if their numbers differ or a card would be its own far end."""
    linked = {card: ends for card, ends in far_ends.items() if ends}
    addresses = sorted({end for ends in linked.values() for end in ends})
    if len(addresses) != len(linked):
        return {}
    card_at = dict(zip(addresses, sorted(linked), strict=True))
    return {} if any(card_at[end] == card for card, ends in linked.items() for end in ends) else card_at
