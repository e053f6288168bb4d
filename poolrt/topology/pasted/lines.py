"""The lines of a pasted text without what terminals add, and those that say nothing about a machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# ECMA-48: control sequences (colours, cursor), operating-system commands (window titles), two-byte escapes; also the
# visible remains of colours where a chat swallowed the escape byte itself.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\|$)|\x1b[@-_]|\x1b|\[\d{1,3}(?:;\d{1,3})*m|\[m\b"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_SAYS_NOTHING = (
    re.compile(r"\s*(#.*)?"),  # blank, or a comment
    re.compile(r"\s*(NIC )?Legend:?\s*", re.IGNORECASE),
    re.compile(r"\s*(X|SYS|SOC|NODE|PHB|PXB|PIX|PSB|NV#|OK|CNS|GNS|TNS|NS|DR|U)\s+=\s.*"),  # a line of a legend
    re.compile(r"\s*(NIC\d+|mlx\w+)\s*:.*"),  # a line of the NIC legend
    re.compile(r"\s*```\w*\s*"),  # a code fence of Markdown
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a pasted text."""

    number: int
    """from 1, as editors count"""
    text: str


def lines_of(text: str) -> Iterator[Line]:
    """The lines of `text` without colours, other control characters and trailing blanks."""
    for number, raw in enumerate(re.split(r"\r?\n|\r", text), start=1):
        yield Line(number=number, text=_CONTROLS.sub("", _ESCAPES.sub("", raw)).rstrip())


def says_nothing(text: str) -> bool:
    """Whether a line is blank, a comment, a part of a legend or a code fence."""
    return any(pattern.fullmatch(text) for pattern in _SAYS_NOTHING)
