"""A prompt with the nvidia-smi command whose output follows."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMAND = re.compile(r"(?:^|[\s/$#>%\"'`])nvidia-smi(?:\.exe)?(?P<arguments>(?:\s.*)?)$")
_ONLY = re.compile(r"\s(?:-i|--id)[ =](?P<index>\d{1,3})\b")
_PEER = re.compile(r"\s(?:-p2p|--p2pstatus)\s+(?P<letters>[rwnap]+)\b")

CAPABILITIES = {"r": "read", "w": "write", "n": "nvlink", "a": "atomics", "p": "pcie"}
"""letter of `nvidia-smi topo -p2p` -> capability"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A call of nvidia-smi."""

    capabilities: tuple[str, ...] | None
    """what a following peer matrix is about; None if the command prints no such matrix"""
    card: int | None
    """the only card that the output is about (-i); its name then may be missing"""


def read_command(text: str) -> Command | None:
    """The call of nvidia-smi on a line, behind whatever prompt; None if there is none."""
    match = _COMMAND.search(text)
    if match is None:
        return None
    peer = _PEER.search(match["arguments"])
    letters = peer["letters"] if peer else ""
    only = _ONLY.search(match["arguments"])
    return Command(
        capabilities=tuple(CAPABILITIES[letter] for letter in letters) or None,
        card=int(only["index"]) if only else None,
    )
