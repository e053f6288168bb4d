"""Which bytes go where: every card's room first, then peers with slack, then the host.

    card 0  |######## its own ########|+++|          too much by two pieces and by three
    card 1  |#### its own ####|- slack -|            has room for two of them: a link joins it to card 0
    host    |                                        takes the third

What is read most often is placed first, as it will be allocated first: weights, then the optimizer's state, then the
temporaries of its step. A card that spills keeps its room for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from poolrt.planning.demand import Demand
from poolrt.planning.pooled_bytes import PeerBytes, PooledBytes, Tiers
from poolrt.planning.ways import Ways


@dataclass(frozen=True, kw_only=True)
class CardSpill:
    """What one card takes from the pool and gives to it."""

    spills: bool
    pooled: PooledBytes = field(default_factory=PooledBytes)
    layers: tuple[tuple[int, Tiers], ...] = ()
    """position in the profile, and where the weights lie, of each layer whose weights are pooled"""
    guests: int = 0
    """bytes of other cards that lie here"""
    limit: int = 0
    """bytes of pooled tensors, own or others', that may lie here"""


def distribute(demands: Sequence[Demand], ways: Ways) -> tuple[CardSpill, ...]:
    """Where the pooled bytes of every card lie. The host takes what the cards cannot.

    Args:
        demands: one for each card.
        ways: how the cards reach one another.
    """
    return _Distribution(demands, ways).run()


class _Distribution:
    """Room that is left, while it is handed out."""

    def __init__(self, demands: Sequence[Demand], ways: Ways) -> None:
        self._demands = demands
        self._room = [demand.room for demand in demands]
        spilling = [card for card, demand in enumerate(demands) if demand.spills]
        self._peers = {card: [peer for peer in ways.peers[card] if not demands[peer].spills] for card in spilling}
        # Who has fewer to ask, asks first.
        self._spilling = sorted(spilling, key=lambda card: (len(self._peers[card]), card))

    def run(self) -> tuple[CardSpill, ...]:
        weights = {card: [self._take(card, x.nbytes) for x in self._demands[card].layers] for card in self._spilling}
        optimizer = {card: self._take(card, self._demands[card].optimizer) for card in self._spilling}
        temporaries = {card: self._take(card, self._demands[card].temporaries) for card in self._spilling}
        pooled = {
            card: PooledBytes(
                weights=Tiers.sum(weights[card]), optimizer=optimizer[card], temporaries=temporaries[card]
            )
            for card in self._spilling
        }
        offered = {peer for peers in self._peers.values() for peer in peers}
        return tuple(
            self._taking_card(card, pooled[card], weights[card]) if demand.spills else self._giving_card(card, offered)
            for card, demand in enumerate(self._demands)
        )

    def _take(self, card: int, nbytes: int) -> Tiers:
        home = self._take_from(card, nbytes)
        left = nbytes - home
        peers: list[PeerBytes] = []
        for peer in self._peers[card]:
            taken = self._take_from(peer, left)
            left -= taken
            peers += [PeerBytes(card=peer, nbytes=taken)] if taken else []
        return Tiers(home=home, peers=tuple(peers), host=left)

    def _take_from(self, place: int, nbytes: int) -> int:
        taken = min(self._room[place], nbytes)
        self._room[place] -= taken
        return taken

    def _taking_card(self, card: int, pooled: PooledBytes, weights: Sequence[Tiers]) -> CardSpill:
        positions = [layer.position for layer in self._demands[card].layers]
        return CardSpill(
            spills=True,
            pooled=pooled,
            layers=tuple(zip(positions, weights, strict=True)),
            limit=self._demands[card].room,
        )

    def _giving_card(self, card: int, offered: set[int]) -> CardSpill:
        room = self._demands[card].room
        return CardSpill(spills=False, guests=room - self._room[card], limit=room if card in offered else 0)
