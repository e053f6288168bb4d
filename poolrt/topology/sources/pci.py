"""PCI devices in sysfs: how a card sits in its slot, and which bridges are above it.

/sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:00.0/0000:43:00.0
             host bridge root port    switch, up   switch, down card
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from poolrt.topology.facts import CardFacts, PcieFacts
from poolrt.topology.sources.protocols import FileSource

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_GENERATION = {"2.5": 1, "5.0": 2, "5": 2, "8.0": 3, "8": 3, "16.0": 4, "16": 4, "32.0": 5, "32": 5, "64.0": 6, "64": 6}
# PCI Express base specification, 7.7.11: capability 0x0d, control register at 6; request and completion redirect.
_ACS_CAPABILITY, _ACS_CONTROL, _ACS_REDIRECT = 0x0D, 6, 0b1100
_FIRST_EXTENDED_CAPABILITY = 0x100


def with_slot(files: FileSource, card: CardFacts) -> CardFacts:
    """The card with what sysfs knows of its slot, where nothing better was known."""
    if card.bus_id is None or device_path(files, card.bus_id) is None:
        return card
    folder = f"/sys/bus/pci/devices/{card.bus_id}"
    node = _number(files.text(f"{folder}/numa_node"))
    seen = PcieFacts(
        generation=_generation(files.text(f"{folder}/current_link_speed")),
        width=_number(files.text(f"{folder}/current_link_width")),
        maximum_generation=_generation(files.text(f"{folder}/max_link_speed")),
        maximum_width=_number(files.text(f"{folder}/max_link_width")),
        fatal_errors=_total_errors(files, folder),
    )
    known = {name: value for name, value in vars(card.pcie).items() if value is not None}
    return replace(
        card,
        numa_node=node if card.numa_node is None and node is not None and node >= 0 else card.numa_node,
        cpu_affinity=card.cpu_affinity or files.text(f"{folder}/local_cpulist"),
        pcie=replace(seen, **known),
    )


def device_path(files: FileSource, bus_id: str) -> tuple[str, ...] | None:
    """What is between the host bridge and a device, both included; None if sysfs does not know it."""
    real = files.real(f"/sys/bus/pci/devices/{bus_id}")
    if real is None:
        return None
    return tuple(part for part in real.split("/") if part.startswith("pci") or _ADDRESS.fullmatch(part))


def redirecting_bridges(files: FileSource, devices: Sequence[str]) -> tuple[str, ...] | None:
    """Bridges above the devices that send peer traffic up to the root.

    None if a configuration space cannot be read beyond its first bytes, as is so without root.
    """
    bridges = {part for device in devices for part in (device_path(files, device) or ())[1:-1]}
    found = []
    for bridge in sorted(bridges):
        space = files.data(f"/sys/bus/pci/devices/{bridge}/config") or b""
        if len(space) <= _FIRST_EXTENDED_CAPABILITY:
            return None
        if any(control & _ACS_REDIRECT for control in _acs_controls(space)):
            found.append(bridge)
    return tuple(found)


def _acs_controls(space: bytes) -> Iterator[int]:
    """The ACS control register of a configuration space, if it has one. Walks the list of extended capabilities."""
    offset, seen = _FIRST_EXTENDED_CAPABILITY, set()
    while offset >= _FIRST_EXTENDED_CAPABILITY and offset + 8 <= len(space) and offset not in seen:
        seen.add(offset)
        (header,) = struct.unpack_from("<I", space, offset)
        if header & 0xFFFF == _ACS_CAPABILITY:
            yield struct.unpack_from("<H", space, offset + _ACS_CONTROL)[0]
        offset = header >> 20


def _generation(speed: str | None) -> int | None:
    return _GENERATION.get((speed or "").split(" ")[0])


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _total_errors(files: FileSource, folder: str) -> int | None:
    texts = [files.text(f"{folder}/{name}") for name in ("aer_dev_fatal", "aer_dev_nonfatal")]
    totals = [re.search(r"TOTAL_ERR_\w+ (\d+)", text) for text in texts if text]
    return sum(int(total[1]) for total in totals if total) if totals else None
