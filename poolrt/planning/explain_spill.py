"""What a plan spills, as a table and in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from poolrt.planning.compress import compress_names
from poolrt.units import format_nbytes, format_seconds

if TYPE_CHECKING:
    from poolrt.planning.plan import CardPlan, Plan
    from poolrt.planning.pooled_bytes import Tiers

_POOLED = {"weights": "weights", "optimizer": "optimizer state", "temporaries": "temporaries of the optimizer's step"}


def spill_table(plan: Plan) -> Table:
    """What lies where, of all that comes from the pool: a row for each card and kind."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("of card", justify="right")
    table.add_column("from the pool")
    places = [f"on card {card.index}" for card in plan.cards]
    for heading in (*places, "on the host"):
        table.add_column(heading, justify="right", no_wrap=True)
    for card in plan.cards:
        for kind, tiers in _kinds(card):
            table.add_row(str(card.index), _POOLED[kind], *_places(card.index, tiers, len(plan.cards)))
    return table


def spill_sentences(plan: Plan) -> Iterator[str]:
    """For each card what is elsewhere, which weights come from the pool, and what waiting for it costs."""
    for card in plan.cards:
        for kind, tiers in _kinds(card):
            which = f" ({', '.join(compress_names(_in_order(card)))})" if kind == "weights" else ""
            away = " and ".join(_away(tiers)) or "nothing elsewhere"
            yield f"{_POOLED[kind]} of card {card.index}{which}: {format_nbytes(tiers.total)}, of which {away}"
        if card.predicted_spill_s:
            share = card.predicted_spill_s / plan.predicted_step_s
            yield (
                f"card {card.index} waits for what is elsewhere about {format_seconds(card.predicted_spill_s)} of each "
                f"step ({share:.0%})"
            )


def _kinds(card: CardPlan) -> Iterator[tuple[str, Tiers]]:
    for kind in _POOLED:
        tiers: Tiers = getattr(card.pooled_bytes, kind)
        if tiers.total:
            yield kind, tiers


def _in_order(card: CardPlan) -> list[str]:
    spilled = set(card.spilled_layers)
    return [layer for layer in card.layers if layer in spilled]


def _places(home: int, tiers: Tiers, cards: int) -> Iterator[str]:
    on_card = {home: tiers.home} | {peer.card: peer.nbytes for peer in tiers.peers}
    for card in range(cards):
        yield format_nbytes(on_card[card]) if on_card.get(card) else "-"
    yield format_nbytes(tiers.host) if tiers.host else "-"


def _away(tiers: Tiers) -> Iterator[str]:
    for peer in tiers.peers:
        yield f"{format_nbytes(peer.nbytes)} on card {peer.card}"
    if tiers.host:
        yield f"{format_nbytes(tiers.host)} on the host"
