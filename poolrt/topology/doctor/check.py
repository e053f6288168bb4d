"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from poolrt.topology.assemble import nvlink_count
from poolrt.topology.facts import CardFacts, Machine, PairFacts

Verdict = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding."""

    id: str
    """what was looked at: "nvlink-active" """
    verdict: Verdict
    evidence: str
    """what was seen, or why it could not be seen"""
    fix: str = ""
    """what to do about it; empty where nothing is to be done"""


Examination = Callable[[Machine], Check]
"""one check: pure, from what was seen to a finding"""


def ok(name: str, evidence: str) -> Check:
    """Nothing to be done."""
    return Check(id=name, verdict="ok", evidence=evidence)


def warn(name: str, evidence: str, fix: str) -> Check:
    """Works, but not as well as it could."""
    return Check(id=name, verdict="warn", evidence=evidence, fix=fix)


def fail(name: str, evidence: str, fix: str) -> Check:
    """Does not work, or gives wrong results."""
    return Check(id=name, verdict="fail", evidence=evidence, fix=fix)


def unknown(name: str, evidence: str, fix: str = "") -> Check:
    """Could not be seen."""
    return Check(id=name, verdict="unknown", evidence=evidence, fix=fix)


def label(card: CardFacts) -> str:
    """What people call a card: "card 1 (NVIDIA GeForce RTX 3090)"."""
    return f"card {card.index} ({card.name})" if card.name else f"card {card.index}"


def listed(parts: Iterable[str], most: int = 6) -> str:
    """The parts in one line, cut after `most`."""
    everything = list(parts)
    more = f" and {len(everything) - most} more" if len(everything) > most else ""
    return "; ".join(everything[:most]) + more


def both_ways(machine: Machine) -> list[PairFacts]:
    """The pairs of which anything was seen, one direction each where both are alike."""
    seen = {(pair.source, pair.target): pair for pair in machine.pairs}
    return [pair for (x, y), pair in seen.items() if x < y or (y, x) not in seen or _differ(pair, seen[y, x])]


def named(pair: PairFacts) -> str:
    """What people call a pair: "cards 0 and 1"."""
    return f"cards {pair.source} and {pair.target}"


def over_pcie(pair: PairFacts) -> bool:
    """Whether the way between the cards is PCIe, as far as was seen."""
    return nvlink_count(pair) == 0


def _differ(pair: PairFacts, back: PairFacts) -> bool:
    return pair.peer_access != back.peer_access or pair.proof != back.proof
