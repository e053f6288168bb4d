"""A plan as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from poolrt.planning.counts import in_words
from poolrt.units import format_nbytes, format_seconds

if TYPE_CHECKING:
    from poolrt.planning.plan import CardPlan, Plan

_KINDS = ("weights", "gradients", "optimizer", "activations", "workspace")
_WIDTH = 140


def explain(plan: Plan) -> str:
    """The plan in plain text: a row for each card, then the schedule, the predicted time, and notes in sentences."""
    text = StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    if not plan.feasible:
        console.print(f"This does not fit: {plan.reason}", soft_wrap=True, markup=False)
        console.print("The placement that comes closest:")
    console.print(_table(plan))
    console.print(
        f"batch of {plan.batch_size} in {in_words(plan.micro_batches)}, schedule {plan.schedule}, optimizer "
        f"{plan.optimizer}, predicted step {format_seconds(plan.predicted_step_s)}",
        soft_wrap=True,
        markup=False,
    )
    for note in plan.notes:
        console.print(f"- {note}", soft_wrap=True, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("card", justify="right")
    table.add_column("layers", overflow="fold")
    for heading in (*_KINDS, "peak", "of card", "busy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for card in plan.cards:
        table.add_row(*_row(card, plan.predicted_step_s))
    return table


def _row(card: CardPlan, step_s: float) -> Iterator[str]:
    yield str(card.index)
    yield ", ".join(compress_names(card.layers)) or "none"
    for kind in _KINDS:
        yield format_nbytes(getattr(card.predicted_bytes, kind))
    yield format_nbytes(card.predicted_peak_bytes)
    yield f"{card.predicted_peak_bytes / card.capacity_bytes:.0%}" if card.capacity_bytes else "-"
    yield f"{card.predicted_busy_s / step_s:.0%}" if step_s else "-"


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
    return [group.text for group in groups]


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
