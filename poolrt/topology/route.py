"""How bytes go from one card to another: LOCAL, P2P, or HOST. Pure: decided from a topology alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import link_preset
from poolrt.topology.topology import Link, Topology

RouteKind = Literal["LOCAL", "P2P", "HOST"]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way from card `source` to card `target`."""

    source: int
    target: int
    kind: RouteKind
    bytes_per_s: float
    """bandwidth of one copy; infinite for LOCAL, which planning takes as free beside any link"""
    latency_s: float
    """fixed cost of one copy"""

    def copy_s(self, nbytes: float, copies: int = 1) -> float:
        """Predicted seconds to move `nbytes` in `copies` copies one after another."""
        return nbytes / self.bytes_per_s + copies * self.latency_s


def route(topology: Topology, source: int, target: int) -> Route:
    """The way from card `source` to card `target`.

    LOCAL within a card and between cards that share a device; P2P over a stated NVLINK or PCIE link; HOST through the
    host's memory otherwise. A link that is not stated counts as HOST: planning never assumes a wire that nobody saw.

    Raises:
        ConfigurationError: if there is no such card.
    """
    for index in (source, target):
        if not 0 <= index < len(topology.cards):
            raise ConfigurationError(f"there is no card {index}; the topology has {len(topology.cards)} cards")
    if topology.cards[source].device == topology.cards[target].device:
        return Route(source=source, target=target, kind="LOCAL", bytes_per_s=float("inf"), latency_s=0.0)
    link = topology.link(source, target) or _through_host(source, target)
    kind: RouteKind = "HOST" if link.kind == "HOST" else "P2P"
    return Route(source=source, target=target, kind=kind, bytes_per_s=link.bytes_per_s, latency_s=link.latency_s)


def reachable_peers(topology: Topology, card: int) -> list[int]:
    """The cards whose memory `card` can use as if it were its own, nearest first: by bandwidth, then by index.

    A link stands between the two in both directions, or they share a device. Through the host there is no use in a
    peer: the host itself is nearer.
    """

    def joined(peer: int) -> bool:
        return all(route(topology, *pair).kind != "HOST" for pair in ((card, peer), (peer, card)))

    peers = [peer for peer in range(len(topology)) if peer != card and joined(peer)]
    return sorted(peers, key=lambda peer: (-route(topology, peer, card).bytes_per_s, peer))


def _through_host(source: int, target: int) -> Link:
    return link_preset("host").link(source, target)
