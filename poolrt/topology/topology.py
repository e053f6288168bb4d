"""Cards and links as values, and their JSON form.

A topology says nothing about what is running: it can be discovered, built for virtual cards, read from a file, or
written by hand, and planning treats them all alike.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from poolrt.errors import ConfigurationError
from poolrt.units import format_nbytes, format_seconds

SCHEMA = 1

CardKind = Literal["cuda", "logical", "virtual", "recorded"]
LinkKind = Literal["NVLINK", "PCIE", "HOST"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A place with memory that can compute.

    Raises:
        ConfigurationError: if the index is negative, the kind unknown, or a card that is not recorded has no memory.
    """

    index: int
    """position in the topology, from 0"""
    name: str
    """what people call it: "NVIDIA GeForce RTX 3090", "virtual card 0" """
    kind: CardKind
    memory_bytes: int
    """all the memory that poolrt may use on it; 0 for a recorded card whose text does not tell"""
    device: str
    """torch's name for it: "cuda:0", "vcard:1"; two logical cards may share one"""

    def __post_init__(self) -> None:
        if self.kind not in get_args(CardKind):
            raise ConfigurationError(f"card {self.index} has kind {self.kind!r}; known are {get_args(CardKind)}")
        least = 0 if self.kind == "recorded" else 1
        if self.index < 0 or self.memory_bytes < least:
            raise ConfigurationError(
                f"a card needs an index from 0 and a positive memory, got index {self.index}, {self.memory_bytes} bytes"
            )


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection that carries bytes from one card to another, in that direction.

    Raises:
        ConfigurationError: if it joins a card to itself, or its bandwidth or latency makes no sense.
    """

    source: int
    """index of the card that is read"""
    target: int
    """index of the card that is written"""
    kind: LinkKind
    relation: str
    """as `nvidia-smi topo -m` prints it: "NV4", "PIX", "PHB", "SYS"; "HOST" where it prints nothing that fits"""
    bytes_per_s: float
    """what one copy in this direction reaches"""
    latency_s: float
    """fixed cost of one copy"""

    def __post_init__(self) -> None:
        pair = f"the link from card {self.source} to card {self.target}"
        if self.kind not in get_args(LinkKind):
            raise ConfigurationError(f"{pair} has kind {self.kind!r}; known are {get_args(LinkKind)}")
        if self.source == self.target:
            raise ConfigurationError(f"{pair} joins a card to itself; a copy within a card needs no link")
        if not (0 < self.bytes_per_s < math.inf and 0 <= self.latency_s < math.inf):
            raise ConfigurationError(
                f"{pair} needs a positive bandwidth and no negative latency, "
                f"got {self.bytes_per_s} bytes/s and {self.latency_s} s"
            )


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The cards of one box and the links between them. No cards at all is a valid answer of discovery.

    Raises:
        ConfigurationError: if card indices are not 0..n-1 in order, or a link is stated twice or to no card.
    """

    cards: tuple[Card, ...]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        indices = [card.index for card in self.cards]
        if indices != list(range(len(self.cards))):
            raise ConfigurationError(f"cards must be numbered 0..{len(self.cards) - 1} in order, got {indices}")
        seen: set[tuple[int, int]] = set()
        for link in self.links:
            pair = (link.source, link.target)
            if not all(0 <= end < len(self.cards) for end in pair):
                raise ConfigurationError(f"a link joins cards {pair}, but there are only {len(self.cards)} cards")
            if pair in seen:
                raise ConfigurationError(f"the link from card {pair[0]} to card {pair[1]} is stated twice")
            seen.add(pair)

    def __len__(self) -> int:
        return len(self.cards)

    def link(self, source: int, target: int) -> Link | None:
        """The link that carries bytes from card `source` to card `target`; None if none is stated."""
        return next((link for link in self.links if (link.source, link.target) == (source, target)), None)

    def subset(self, indices: Sequence[int]) -> Topology:
        """The topology of some of the cards, in the order given, numbered from 0; devices stay as they are.

        Raises:
            ConfigurationError: if an index is not there or is given twice.
        """
        if len(set(indices)) != len(indices) or not all(0 <= index < len(self.cards) for index in indices):
            raise ConfigurationError(
                f"cannot take cards {list(indices)}: choose different ones out of the {len(self.cards)} that are there"
            )
        renumbered = {old: new for new, old in enumerate(indices)}
        links = (
            replace(link, source=renumbered[link.source], target=renumbered[link.target])
            for link in self.links
            if link.source in renumbered and link.target in renumbered
        )
        return Topology(
            cards=tuple(replace(self.cards[old], index=new) for old, new in renumbered.items()), links=tuple(links)
        )

    def fingerprint(self) -> str:
        """A short hash of what planning depends on: memory, which cards share a device, links. Names do not count."""
        devices = list(dict.fromkeys(card.device for card in self.cards))
        facts = {
            "cards": [(card.memory_bytes, devices.index(card.device)) for card in self.cards],
            "links": sorted((x.source, x.target, x.kind, x.bytes_per_s, x.latency_s) for x in self.links),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The topology as plain values, schema 1."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """The topology as JSON, schema 1."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Topology:
        """The topology that `to_json` wrote; unknown keys are passed over.

        Raises:
            ConfigurationError: if the text is no topology of schema 1.
        """
        try:
            body = json.loads(text)
            if body["schema"] != SCHEMA:
                raise ConfigurationError(
                    f"this topology has schema {body['schema']}, this version reads schema {SCHEMA}"
                )
            cards = tuple(_card_from(plain) for plain in body["cards"])
            links = tuple(Link(**{name: plain[name] for name in Link.__dataclass_fields__}) for plain in body["links"])
            return cls(cards=cards, links=links)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"this text is not a topology written by to_json: {error!r}") from error

    def __str__(self) -> str:
        cards = [
            f"card {card.index}  {card.device:8}  {card.kind:8}  {format_nbytes(card.memory_bytes):>9}  {card.name}"
            for card in self.cards
        ]
        links = [
            f"{link.source} -> {link.target}  {link.kind:6}  {link.relation:6}  {link.bytes_per_s / 1e9:6.1f} GB/s  "
            f"{format_seconds(link.latency_s)}"
            for link in self.links
        ]
        return "\n".join(cards + links) if cards else "no cards"


def _card_from(plain: dict[str, Any]) -> Card:
    device = plain.get("device") or _usual_device(plain["kind"], plain["index"])
    facts = {name: plain[name] for name in ("index", "name", "kind", "memory_bytes")}
    return Card(**facts, device=device)


def _usual_device(kind: str, index: int) -> str:
    """A file may leave `device` out; a logical card's device cannot be guessed from its index."""
    if kind == "logical":
        raise ConfigurationError(f'logical card {index} states no device; add for example "device": "cuda:0"')
    return f"cuda:{index}" if kind == "cuda" else f"vcard:{index}"
