"""`nvidia-smi nvlink -s` (state and rate of each link), `-R` and `-p` (what is at its far end).

GPU 0: NVIDIA H100 PCIe (UUID: GPU-6968dfc2-...)      read by card_list.py
     Link 0: 26.562 GB/s                              -s: active
     Link 4: <inactive>                               -s: not active
     Link 4: Remote Device 00000000:D5:00.0: Link 6   -R: numbers the active links only, so that its 4 is not -s's 4
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from poolrt.topology.facts import NvlinkPort

_LINK = r"\s*Link\s+(?P<index>\d{1,2})\s*:\s*"
_RATE = re.compile(_LINK + r"(?P<rate>\d+(?:\.\d+)?)\s*GB/s")
_INACTIVE = re.compile(_LINK + r"<?\s*inactive\s*>?", re.IGNORECASE)
_REMOTE = re.compile(_LINK + r"(?:Remote Device\s+)?(?P<bus_id>[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)\b.*")
_NONE_ACTIVE = re.compile(r".*(?:all links are inactive|does not have or support nvlink).*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RemoteEnd:
    """What is at the far end of an active link."""

    index: int
    """its number among the active links"""
    bus_id: str
    """PCI address as sysfs writes it"""


def read_link_state(text: str) -> NvlinkPort | None:
    """A link's line of `nvlink -s`; None if it is none."""
    if match := _RATE.fullmatch(text):
        return NvlinkPort(index=int(match["index"]), active=True, signal_bytes_per_s=float(match["rate"]) * 1e9)
    if match := _INACTIVE.fullmatch(text):
        return NvlinkPort(index=int(match["index"]), active=False)
    return None


def read_remote_end(text: str) -> RemoteEnd | None:
    """A link's line of `nvlink -R` or `-p`; None if it is none."""
    match = _REMOTE.fullmatch(text)
    return RemoteEnd(index=int(match["index"]), bus_id=sysfs_bus_id(match["bus_id"])) if match else None


def says_none_active(text: str) -> bool:
    """Whether a line is the complaint that all links of a card are inactive, or that it has none."""
    return bool(_NONE_ACTIVE.fullmatch(text))


def sysfs_bus_id(bus_id: str) -> str:
    """A PCI address with the four-digit domain and the small letters of sysfs: 00000000:C2:00.0 -> 0000:c2:00.0."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"
