"""Logical cards hold to their share: what is allocated while one is worked on comes from a pool with that limit.

    one GPU   |#### card 0 ####    |## card 1 ##        |  what no logical card has  |
              |<----- its cap ---->|<----- its cap ---->|

A card with memory of its own needs no such pool: there the device itself refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from poolrt.memory.pool import Pool
from poolrt.topology.topology import Topology


class Caps:
    """One pool for each card of `topology`; nothing in it lies on another card or the host."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._pools = [Pool(topology.subset([card.index])) for card in topology.cards]

    def on(self, card: int) -> AbstractContextManager[None]:
        """Meanwhile this thread allocates on the card's device from the card's share."""
        return self._pools[card].use(home=0)

    def used_nbytes(self, card: int) -> int:
        """Bytes of live tensors in the share of `card`, as rounded."""
        return self._pools[card].stats().live_nbytes

    def leave_room_for(self, nbytes: Sequence[int]) -> None:
        """Take so many bytes of each card's share away, for a pool that is used beside it."""
        for card, pool, others in zip(self._topology.cards, self._pools, nbytes, strict=True):
            pool.set_limit(0, card.memory_bytes - others)


def caps_of(topology: Topology) -> Caps | None:
    """The caps of logical cards; None for cards with memory of their own."""
    return Caps(topology) if any(card.kind == "logical" for card in topology.cards) else None
