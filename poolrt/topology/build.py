"""Topologies of cards that are made rather than found: virtual cards, and logical cards cut from one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import LinkPreset, link_preset
from poolrt.topology.topology import Card, Link, Topology

MAXIMUM_CARDS = 16
"""virtual or logical cards in one process"""


def virtual_topology(memory_bytes: Sequence[int], link: str | None = None) -> Topology:
    """Virtual cards of these sizes, on devices vcard:0, vcard:1, ...

    Args:
        memory_bytes: one size per card, in bytes.
        link: name of the link that planning takes between any two cards, as in the catalogue; None means copies within
            the host's memory, which is what virtual cards really do. It changes plans, never the speed of a copy.

    Raises:
        ConfigurationError: if there are no cards, more than 16, a size that is not positive, or an unknown link.
    """
    _check_count(len(memory_bytes), "virtual")
    cards = tuple(
        Card(index=index, name=f"virtual card {index}", kind="virtual", memory_bytes=nbytes, device=f"vcard:{index}")
        for index, nbytes in enumerate(memory_bytes)
    )
    return Topology(cards=cards, links=_all_pairs(len(cards), link_preset(link or "memory")))


def logical_topology(device: str, memory_bytes: Sequence[int], *, name: str | None = None) -> Topology:
    """Logical cards of these sizes, all on one device. They have no links: bytes stay on the device.

    Args:
        device: torch's name of the GPU, with its ordinal: "cuda:0".
        memory_bytes: the share of each logical card, in bytes.
        name: name of the GPU, for people; the device by default.

    Raises:
        ConfigurationError: if there are no cards, more than 16, or a size that is not positive.
    """
    _check_count(len(memory_bytes), "logical")
    cards = tuple(
        Card(
            index=index,
            name=f"{name or device}, share {index}",
            kind="logical",
            memory_bytes=nbytes,
            device=device,
        )
        for index, nbytes in enumerate(memory_bytes)
    )
    return Topology(cards=cards)


def _check_count(cards: int, kind: str) -> None:
    if not 1 <= cards <= MAXIMUM_CARDS:
        raise ConfigurationError(f"asked for {cards} {kind} cards; choose 1 to {MAXIMUM_CARDS}")


def _all_pairs(cards: int, preset: LinkPreset) -> tuple[Link, ...]:
    return tuple(preset.link(source, target) for source, target in permutations(range(cards), 2))
