"""Where bytes of the pool lie: on their home card, on peers, on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PeerBytes:
    """Bytes of one card that lie on another."""

    card: int
    """index of the card they lie on"""
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Bytes of one card by where they lie."""

    home: int = 0
    peers: tuple[PeerBytes, ...] = ()
    """nearest first, each once, none with zero bytes"""
    host: int = 0

    @property
    def on_peers(self) -> int:
        """Bytes on all peers together."""
        return sum(peer.nbytes for peer in self.peers)

    @property
    def away(self) -> int:
        """Bytes that are not on their home card."""
        return self.on_peers + self.host

    @property
    def total(self) -> int:
        """All of them."""
        return self.home + self.away

    @classmethod
    def sum(cls, parts: Iterable[Tiers]) -> Tiers:
        """The bytes of all `parts`."""
        home = host = 0
        on_peers: Counter[int] = Counter()
        for part in parts:
            home, host = home + part.home, host + part.host
            on_peers.update({peer.card: peer.nbytes for peer in part.peers})
        return cls(home=home, peers=tuple(PeerBytes(card=c, nbytes=n) for c, n in on_peers.items()), host=host)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Tiers:
        """What `dataclasses.asdict` made plain."""
        peers = tuple(PeerBytes(card=peer["card"], nbytes=peer["nbytes"]) for peer in plain["peers"])
        return cls(home=plain["home"], peers=peers, host=plain["host"])


@dataclass(frozen=True, kw_only=True)
class PooledBytes:
    """What one card takes from the pool, rounded as the pool rounds it, by kind and by where it lies."""

    weights: Tiers = field(default_factory=Tiers)
    """of the layers whose weights are spilled"""
    optimizer: Tiers = field(default_factory=Tiers)
    """the optimizer's state of all layers of the card"""
    temporaries: Tiers = field(default_factory=Tiers)
    """what the optimizer's step makes and frees; there only while it runs"""

    @property
    def all(self) -> Tiers:
        """The three kinds together."""
        return Tiers.sum((self.weights, self.optimizer, self.temporaries))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> PooledBytes:
        """What `dataclasses.asdict` made plain; unknown keys are passed over."""
        return cls(**{kind: Tiers.from_dict(plain[kind]) for kind in ("weights", "optimizer", "temporaries")})
