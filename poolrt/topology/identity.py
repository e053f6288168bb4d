"""Which cards these are, on which driver, since which start of the machine: what a measurement holds for.

A bridge that is taken off, a card that is moved, a kernel with other IOMMU settings: all take a restart or a new
driver, so a measurement that was taken since the machine was started is still true.
"""

from __future__ import annotations

from dataclasses import dataclass

from poolrt.topology.discover import Sources
from poolrt.topology.topology import Topology

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_DRIVER_VERSIONS = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells one set of cards in one state from any other."""

    cards: tuple[str, ...]
    """UUIDs in the order of the topology; models of virtual cards"""
    driver: str
    boot: str
    virtual: bool = False


def identify(topology: Topology, sources: Sources | None = None) -> Identity | None:
    """Who the cards of a topology are; None if that cannot be told for certain, or they are only recorded."""
    kinds = {card.kind for card in topology.cards}
    if kinds == {"virtual"}:
        return Identity(cards=(topology.fingerprint(),), driver="virtual", boot="", virtual=True)
    if not kinds or not kinds <= {"cuda", "logical"}:
        return None
    asked = sources or Sources.of_this_machine()
    if asked.identity is None or asked.files is None:
        return None
    ordinals = [int(card.device.partition(":")[2]) for card in topology.cards]
    uuids = [asked.identity.uuid(ordinal) for ordinal in ordinals]
    versions = [text for path in _DRIVER_VERSIONS if (text := asked.files.text(path))]
    boot = asked.files.text(_BOOT_ID)
    if not versions or not boot or any(uuid is None for uuid in uuids):
        return None
    return Identity(cards=tuple(filter(None, uuids)), driver=versions[0], boot=boot)
