"""Layers that are split over all cards, with a whole batch: one stage of all cards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from poolrt.errors import ConfigurationError
from poolrt.planning.plan import Plan
from poolrt.planning.planner import plan_stages
from poolrt.planning.split_facts import CardWeights, RegionCall, SplitFacts, profile_of_card
from poolrt.topology.topology import Topology

__all__ = ["CardWeights", "RegionCall", "SplitFacts", "check_cards", "plan_split", "profile_of_card"]


def plan_split(facts: SplitFacts, topology: Topology, optimizer: str) -> Plan:
    """The plan of a model split over all cards; it may be infeasible. Its cards name modules instead of layers.

    Raises:
        ConfigurationError: if planning does not know the optimizer.
    """
    plan = plan_stages([facts], topology, [range(len(topology))], micro_batches=1, optimizer=optimizer)
    cards = (
        replace(card, layers=_grouped((*facts.modules, *(() if card.index else facts.rest)))) for card in plan.cards
    )
    return replace(plan, cards=tuple(cards), schedule="tensor-parallel")


def _grouped(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once; those that differ in a number alone stand together, as readers want to see them."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(re.sub(r"\d+", "", name), []).append(name)
    return tuple(name for group in groups.values() for name in group)


def check_cards(tensor_parallel: int, topology: Topology) -> None:
    """See that layers can be split so many ways over these cards.

    Raises:
        ConfigurationError: if not, with what to do.
    """
    if len(topology) < 2:
        raise ConfigurationError(
            f"tensor_parallel={tensor_parallel} splits layers over several cards, and there is {len(topology)}; leave "
            "it out, or give a topology of more cards"
        )
    if tensor_parallel != len(topology):
        raise ConfigurationError(
            f"tensor_parallel={tensor_parallel} over {len(topology)} cards: layers are split over all cards of the "
            f"topology; say tensor_parallel={len(topology)}, or give a topology of {tensor_parallel} cards "
            "(topology.subset)"
        )
