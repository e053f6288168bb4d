"""Names of layers as people write them: many that count up become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WHOLE_MODEL = "the model"
"""a layer without a name is the model itself"""


def compress_names(names: Sequence[str]) -> list[str]:
    """Names that count up in one place are joined: encoder.layer.0, encoder.layer.1 become encoder.layer.0-1.

    >>> compress_names(["embeddings", "layer.0", "layer.1", "layer.2", "head"])
    ['embeddings', 'layer.0-2', 'head']
    """
    groups: list[_Group] = []
    for name in names:
        parts = name.split(".")
        place = _counting_place(groups[-1].last, parts) if groups else None
        if place is not None and groups[-1].place in (None, place):
            groups[-1].place, groups[-1].last = place, parts
        else:
            groups.append(_Group(first=parts, last=parts))
    return [group.text or WHOLE_MODEL for group in groups]


@dataclass
class _Group:
    """Names that count up in one place."""

    first: list[str]
    last: list[str]
    place: int | None = None

    @property
    def text(self) -> str:
        parts = list(self.first)
        if self.place is not None:
            parts[self.place] += f"-{self.last[self.place]}"
        return ".".join(parts)


def _counting_place(before: list[str], after: list[str]) -> int | None:
    """Where `after` is one more than `before`, if that is all that differs."""
    differing = [place for place, (x, y) in enumerate(zip(before, after, strict=False)) if x != y]
    if len(before) != len(after) or len(differing) != 1:
        return None
    x, y = before[differing[0]], after[differing[0]]
    return differing[0] if x.isdecimal() and y.isdecimal() and int(y) == int(x) + 1 else None
