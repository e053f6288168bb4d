"""How a card reaches what lies elsewhere: over links to peers, or through the host. Looked up once, asked often."""

from __future__ import annotations

from poolrt.planning.pooled_bytes import Tiers
from poolrt.topology.catalog import link_preset
from poolrt.topology.route import reachable_peers, route
from poolrt.topology.topology import Topology


class Ways:
    """The ways of every card of a topology to what it spills.

    A topology states links between cards. The fastest HOST link of a card passes the host's memory, so it says how fast
    the card reaches that; a card without one is taken to have the catalogue's: "memory" for a virtual card, "host" for
    others.
    """

    def __init__(self, topology: Topology) -> None:
        cards = range(len(topology.cards))
        self._routes = {(a, b): route(topology, a, b) for a in cards for b in cards}
        self.peers = [reachable_peers(topology, card) for card in cards]
        """for each card, its peers, nearest first"""
        self.host_bytes_per_s = [_host_bytes_per_s(topology, card) for card in cards]
        """for each card, what it reads from the host, or writes to it"""

    @property
    def nearest_bytes_per_s(self) -> tuple[float, ...]:
        """For each card, what it reads from its nearest peer; from the host if it has none."""
        return tuple(
            self._routes[peers[0], card].bytes_per_s if peers else self.host_bytes_per_s[card]
            for card, peers in enumerate(self.peers)
        )

    def read_s(self, card: int, tiers: Tiers) -> float:
        """Seconds in which `card` reads once what of these bytes is elsewhere."""
        peers_s = sum(peer.nbytes / self._routes[peer.card, card].bytes_per_s for peer in tiers.peers)
        return peers_s + tiers.host / self.host_bytes_per_s[card]

    def write_s(self, card: int, tiers: Tiers) -> float:
        """Seconds in which `card` writes once what of these bytes is elsewhere."""
        peers_s = sum(peer.nbytes / self._routes[card, peer.card].bytes_per_s for peer in tiers.peers)
        return peers_s + tiers.host / self.host_bytes_per_s[card]


def _host_bytes_per_s(topology: Topology, card: int) -> float:
    stated = [link.bytes_per_s for link in topology.links if link.kind == "HOST" and card in (link.source, link.target)]
    usual = "memory" if topology.cards[card].kind == "virtual" else "host"
    return max(stated, default=link_preset(usual).bytes_per_s)
