"""The table that plain `nvidia-smi` prints: versions at its head, then two or three lines for each card.

| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: 12.4     |
|   0  NVIDIA GeForce RTX 3090        Off | 00000000:01:00.0  On |        N/A |
| 30%   45C    P8    25W / 350W |      500MiB / 24576MiB |      0%    Default |
|                               |                        |                N/A |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from poolrt.topology.pasted.nvlink import sysfs_bus_id

_VERSIONS = re.compile(
    r"\|.*Driver Version:\s*(?P<driver>\d+(?:\.\d+)+).*?CUDA Version:\s*(?:(?P<major>\d+)\.(?P<minor>\d+)|ERR!|N/A).*"
)
_IDENTITY = re.compile(
    r"\|\s*(?P<index>\d{1,3})\s+(?P<name>\S.*?)\s+(?:(?:On|Off|N/A|TCC|WDDM|MCDM|ERR!)\s*)?"
    r"\|\s*(?P<bus_id>[0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)\b.*"
)
_MEMORY = re.compile(r"\|.*\|\s*\d+\s*MiB\s*/\s*(?P<mib>\d{1,8})\s*MiB\s*\|.*")
_MIG = re.compile(r"\|\s*\|\s*\|\s*(?P<state>Enabled\*?|Disabled\*?|N/A)\s*\|?")
_REST = re.compile(r"[|+][-=+ |].*|\|.*\||[-+=|\s]+")


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The head of the table."""

    driver: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class TableCard:
    """The first line of a card."""

    index: int
    name: str
    """cut by nvidia-smi where it is long: "NVIDIA GeForce RTX 30..." """
    bus_id: str
    """PCI address as sysfs writes it"""


def read_versions(text: str) -> Versions | None:
    """The versions on a line; None if there are none."""
    match = _VERSIONS.fullmatch(text)
    if match is None:
        return None
    cuda = (int(match["major"]), int(match["minor"])) if match["major"] else None
    return Versions(driver=match["driver"], cuda=cuda)


def read_table_card(text: str) -> TableCard | None:
    """The first line of a card; None if it is none."""
    match = _IDENTITY.fullmatch(text)
    if match is None:
        return None
    return TableCard(index=int(match["index"]), name=match["name"], bus_id=sysfs_bus_id(match["bus_id"]))


def read_memory(text: str) -> int | None:
    """Bytes of memory of the card whose second line this is; None if it is none."""
    match = _MEMORY.fullmatch(text)
    return int(match["mib"]) << 20 if match else None


def read_mig(text: str) -> bool | None:
    """Whether the card whose third line this is has MIG on; None if it does not say."""
    match = _MIG.fullmatch(text)
    return match["state"].startswith("Enabled") if match and match["state"] != "N/A" else None


def is_rest_of_table(text: str) -> bool:
    """Whether a line is a border, a heading or a process of the table."""
    return bool(_REST.fullmatch(text.strip()))
