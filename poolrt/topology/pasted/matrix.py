"""The two matrices of `nvidia-smi topo`: relations (-m) and peer access (-p2p).

            GPU0  GPU1  NIC0  CPU Affinity  NUMA Affinity  GPU NUMA ID       <- header
    GPU0     X    NV4   PHB   0-23          0              N/A               <- row: cells, then where it is
    NIC0    PHB   PHB    X                                                   <- row of a network card: passed over

Columns are set by tabs or by blanks, cells may be empty (cores that a control group hides) or doubled tabs, and the
header may be cut off anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DEVICE = r"(?:GPU|NIC)\d+|(?:mlx|bnxt|irdma|hfi|ib|roce|rocep|efa|cxi)\w*\d"
_LABEL = re.compile(rf"(?:{_DEVICE})")
_GPU = re.compile(r"GPU(\d+)")
_HEADINGS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_RELATION = re.compile(r"X|NV[1-9]\d?|PIX|PXB|PHB|NODE|SYS|SOC|PSB|N/A")
_STATUS = re.compile(r"X|OK|CNS|GNS|TNS|NS|DR|U|N/A")
_CORES = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")
# Names of old drivers. PSB is a switch on the board of two GPUs; SOC is what SYS was called before NODE existed.
_RENAMED = {"PSB": "PIX", "SOC": "SYS"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The columns of a matrix."""

    devices: tuple[str, ...]
    """labels in order: "GPU0", "NIC1", "mlx5_2" """
    headings: tuple[str, ...]
    """those that stand behind the devices"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One GPU's line of a matrix."""

    card: int
    cells: dict[int, str]
    """other GPU -> relation, or -> peer status"""
    is_status: bool
    """whether the cells are peer statuses"""
    cpu_affinity: str | None = None
    numa_node: int | None = None
    misfit: str | None = None
    """how the line and its header disagree"""


def read_header(text: str) -> Header | None:
    """The columns named on a line; None if it is no header."""
    head = re.split("|".join(_HEADINGS), text, maxsplit=1)[0].split()
    labels = next((n for n, word in enumerate(head) if not _LABEL.fullmatch(word)), len(head))
    devices, rest = head[:labels], " ".join(head[labels:])
    headings = tuple(heading for heading in _HEADINGS if heading in text)
    cut_off = any(name.startswith(rest) for name in (*_HEADINGS, "NIC", "mlx5_"))
    if not devices or not _GPU.fullmatch(devices[0]) or not cut_off or (len(devices) == 1 and not headings):
        return None
    return Header(devices=tuple(devices), headings=headings)


def is_network_row(text: str) -> bool:
    """Whether a line is a matrix row of a network card."""
    words = text.split()
    return (
        len(words) > 1
        and bool(_LABEL.fullmatch(words[0]))
        and not words[0].startswith("GPU")
        and bool(_RELATION.fullmatch(words[1]))
    )


def read_row(text: str, header: Header) -> Row | None:
    """A GPU's row under `header`; None if the line is none."""
    words = text.split()
    own = _GPU.fullmatch(words[0]) if words else None
    if not own:
        return None
    cells = words[1 : 1 + len(header.devices)]
    is_status = any(_STATUS.fullmatch(cell) and cell not in ("X", "N/A") for cell in cells)
    known = _STATUS if is_status else _RELATION
    fitting = next((n for n, cell in enumerate(cells) if not known.fullmatch(cell)), len(cells))
    if fitting == 0:
        return None
    columns = dict(zip(header.devices, cells[:fitting], strict=False))
    gpus = {int(name[3:]): cell for name, cell in columns.items() if _GPU.fullmatch(name)}
    card = int(own[1])
    affinity, numa_node = _place(words[1 + fitting :], len(header.headings))
    return Row(
        card=card,
        cells={other: _RENAMED.get(cell, cell) for other, cell in gpus.items() if cell not in ("X", "N/A")},
        is_status=is_status,
        cpu_affinity=None if is_status else affinity,
        numa_node=None if is_status else numa_node,
        misfit=_misfit(len(gpus), header, words[1 + fitting :]),
    )


def _misfit(gpus: int, header: Header, rest: list[str]) -> str | None:
    if gpus < sum(bool(_GPU.fullmatch(name)) for name in header.devices):
        return "the row ends before its last GPU"
    if rest and _RELATION.fullmatch(rest[0]) and rest[0] != "N/A":
        return "the row has more columns than its header"
    return None


def _place(words: list[str], headings: int) -> tuple[str | None, int | None]:
    """CPU and NUMA affinity from the words behind the cells.

    All headings filled: in order. Fewer words than headings: the line lacks its first column if that is not a list of
    cores, and its last ones otherwise.
    """
    if headings == 0 or not words:
        return None, None
    if len(words) < headings and not re.search(r"[-,]", words[0]):
        words = ["", *words]
    affinity = words[0] if _CORES.fullmatch(words[0]) else None
    node = re.match(r"\d+", words[1]) if len(words) > 1 else None
    return affinity, int(node[0]) if node else None
