"""`nvidia-smi -L`, whose lines also stand above the links of `nvidia-smi nvlink`.

GPU 0: NVIDIA H100 PCIe (UUID: GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9)
  MIG 1g.10gb     Device  0: (UUID: MIG-...)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CARD = re.compile(r"\s*GPU\s+(?P<index>\d{1,3})\s*:\s*(?P<name>[^()]*?)\s*(?:\(UUID:\s*(?P<uuid>[^)\s]*)\s*\)?)?")
_MIG = re.compile(r"\s*MIG\s+\S+\s+Device\s+\d+\s*:.*")


@dataclass(frozen=True, kw_only=True)
class ListedCard:
    """A card's line."""

    index: int
    name: str | None
    uuid: str | None


def read_listed_card(text: str) -> ListedCard | None:
    """The card on a line of `nvidia-smi -L`; None if it is none."""
    match = _CARD.fullmatch(text)
    if match is None:
        return None
    return ListedCard(index=int(match["index"]), name=match["name"] or None, uuid=match["uuid"] or None)


def is_mig_slice(text: str) -> bool:
    """Whether a line names a MIG slice of the card above it."""
    return bool(_MIG.fullmatch(text))
