"""Known cards: which NVLink they have, how many of their links are up on a healthy board, and which PCIe they speak.

Names are matched as the driver prints them. Figures are the makers' unless a source says otherwise; totals from
advertisements, which add both directions and all links of a card, are not used (catalog.py says how they relate).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KnownCard:
    """What is known of a card by its name."""

    pattern: str
    """regular expression, searched in the name without regard to case"""
    architecture: str
    nvlink: str | None
    """the wire in the catalogue, as in "nvlink4"; None if the card has no NVLink"""
    healthy_links: int
    """links that are up on a healthy board; 0 without NVLink"""
    by_bridge: bool
    """NVLink comes with a bridge that the owner may leave out, so that no link at all can be as intended"""
    pcie_generation: int
    peer_over_pcie: bool
    """whether the maker's driver lets such cards reach each other over PCIe"""
    source: str


_GEFORCE = "GeForce RTX"
_GA10X = "GA102 whitepaper: four links of 14.0625 GB/s in each direction"
_NO_NVLINK = "no NVLink connector on the board, by data sheet"
_REFUSED = "; peer access over PCIe answers GPU_NOT_SUPPORTED with the stock driver"


def _card(pattern: str, architecture: str, nvlink: str | None, links: int, pcie: int, source: str, *,
          bridge: bool = False, peer: bool = True) -> KnownCard:  # fmt: skip
    return KnownCard(
        pattern=pattern, architecture=architecture, nvlink=nvlink, healthy_links=links, by_bridge=bridge,
        pcie_generation=pcie, peer_over_pcie=peer, source=source,
    )  # fmt: skip


# The first that fits is meant, so the narrower name stands before the wider one.
KNOWN_CARDS = (
    _card(r"P100-SXM2", "Pascal", "nvlink1", 4, 3, "P100 data sheet; stas00/ml-engineering, network"),
    _card(r"V100-(SXM2|SXM3|DGXS)", "Volta", "nvlink2", 6, 3, "V100 data sheet; DGX-1: six links of 25.781 GB/s up"),
    _card(r"V100-(PCIE|FHHL)|V100S", "Volta", None, 0, 3, _NO_NVLINK),
    _card(r"RTX 2080 Ti|TITAN RTX|Quadro RTX [68]000", "Turing", "nvlink2", 2, 3,
          "two links of 25 GB/s by bridge (Puget Systems)" + _REFUSED, bridge=True, peer=False),
    _card(r"RTX 2080(?! Ti)", "Turing", "nvlink2", 1, 3, "one link by bridge (Puget Systems)", bridge=True, peer=False),
    _card(r"\bT4\b", "Turing", None, 0, 3, _NO_NVLINK),
    _card(r"A100-SXM|A100.*SXM|A800-SXM", "Ampere", "nvlink3sxm", 12, 4,
          "A100 data sheet; adapter boards for PCIe slots exist on which no link is wired", bridge=True),
    _card(r"A100|A800", "Ampere", "nvlink3sxm", 12, 4, "A100 PCIe: three bridges of four links", bridge=True),
    _card(r"\bA30\b", "Ampere", "nvlink3sxm", 4, 4, "A30 data sheet: one bridge, 100 GB/s each way", bridge=True),
    _card(r"RTX 3090", "Ampere", "nvlink3rtx", 4, 4, _GA10X + _REFUSED, bridge=True, peer=False),
    _card(r"RTX A(6000|5500|5000)|\bA40\b", "Ampere", "nvlink3rtx", 4, 4, _GA10X, bridge=True),
    _card(r"H100 PCIe|H100 NVL", "Hopper", "nvlink4", 12, 5,
          "three bridges of four links; the other six of eighteen ports are never up", bridge=True),
    _card(r"H200 NVL", "Hopper", "nvlink4", 18, 5, "H200 NVL data sheet: 450 GB/s each way by bridge", bridge=True),
    _card(r"H800", "Hopper", "nvlink4", 8, 5, "eight links, 200 GB/s each way"),
    _card(r"H100|H200|H20\b|GH200", "Hopper", "nvlink4", 18, 5, "H100 and H200 data sheets: eighteen links"),
    _card(r"RTX PRO \d000 Blackwell|RTX PRO", "Blackwell", None, 0, 5, _NO_NVLINK),
    _card(r"GB[23]00|B[23]00", "Blackwell", "nvlink5", 18, 5, "B200 data sheet: eighteen links of 50 GB/s each way"),
    _card(rf"{_GEFORCE} 30\d0", "Ampere", None, 0, 4, _NO_NVLINK + _REFUSED, peer=False),
    _card(rf"{_GEFORCE} 40\d0", "Ada", None, 0, 4, _NO_NVLINK + _REFUSED, peer=False),
    _card(rf"{_GEFORCE} 50\d0", "Blackwell", None, 0, 5, _NO_NVLINK + _REFUSED, peer=False),
    _card(r"RTX 6000 Ada|RTX [45]\d00 Ada|\bL4\b|\bL40S?\b", "Ada", None, 0, 4, _NO_NVLINK),
    _card(r"RTX A[24]000|\bA10\b|\bA16\b|\bA2\b", "Ampere", None, 0, 4, _NO_NVLINK),
)  # fmt: skip


def known_card(name: str | None) -> KnownCard | None:
    """What is known of the card that the driver calls `name`; None if nothing is."""
    if not name:
        return None
    return next((card for card in KNOWN_CARDS if re.search(card.pattern, name, re.IGNORECASE)), None)
