"""A plan as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from poolrt.planning.compress import compress_names
from poolrt.planning.counts import in_words
from poolrt.planning.explain_spill import spill_sentences, spill_table
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
    if plan.spills:
        console.print(spill_table(plan))
    console.print(
        f"batch of {plan.batch_size} in {in_words(plan.micro_batches)}, schedule {plan.schedule}, optimizer "
        f"{plan.optimizer}, predicted step {format_seconds(plan.predicted_step_s)}",
        soft_wrap=True,
        markup=False,
    )
    for sentence in (*_stage_sentences(plan), *spill_sentences(plan), *plan.notes):
        console.print(f"- {sentence}", soft_wrap=True, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _stage_sentences(plan: Plan) -> Iterator[str]:
    """Which cards work together, and on what."""
    layers = {card.index: card.layers for card in plan.cards}
    for stage in plan.stages:
        if len(stage) > 1:
            cards = " and ".join((", ".join(map(str, stage[:-1])), str(stage[-1])))
            which = ", ".join(compress_names(layers[stage[0]])) or "no layer"
            yield f"cards {cards} run {which} together: each has its pieces, card {stage[0]} also what is not split"


def _table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("card", justify="right")
    table.add_column("layers", overflow="fold")
    kinds = (*_KINDS, "guests") if plan.spills else _KINDS
    for heading in (*kinds, "peak", "of card", "busy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for card in plan.cards:
        table.add_row(*_row(card, kinds, plan.predicted_step_s))
    return table


def _row(card: CardPlan, kinds: Sequence[str], step_s: float) -> Iterator[str]:
    yield str(card.index)
    yield ", ".join(compress_names(card.layers)) or "none"
    for kind in kinds:
        yield format_nbytes(getattr(card.predicted_bytes, kind))
    yield format_nbytes(card.predicted_peak_bytes)
    yield f"{card.predicted_peak_bytes / card.capacity_bytes:.0%}" if card.capacity_bytes else "-"
    yield f"{card.predicted_busy_s / step_s:.0%}" if step_s else "-"
