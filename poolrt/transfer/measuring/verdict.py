"""May the peer route between two cards be used, and for which sizes? Pure: from proofs and figures to a sentence.

usable   bytes arrive as written, and at some size nothing is faster
lies     bytes arrived changed: never used, however fast
fails    a copy ended in an error, or did not end in time: never used
slower   bytes arrive, but the way through the host is faster at every size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from poolrt.topology.route import RouteKind
from poolrt.transfer.measuring.crossover import KindBySize, fastest_by_size
from poolrt.transfer.measuring.figures import Line
from poolrt.units import format_nbytes

Finding = Literal["usable", "lies", "fails", "slower"]

ALWAYS_HOST: KindBySize = ((0, "HOST"),)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What one copy of known content showed. From a card to itself by HOST: down to the host and up again."""

    route: RouteKind
    source: int
    target: int
    nbytes: int
    wrong_nbytes: int = 0
    """bytes that did not arrive as they were written"""
    first_wrong: int | None = None
    """offset of the first of them"""
    failure: str | None = None
    """why there was nothing to compare: the copy's error, or that it did not end"""
    nvlink_nbytes: int | None = None
    """by how much a copy moved the NVLink byte counters of the source; None where nothing counts"""

    @property
    def good(self) -> bool:
        """Whether every byte arrived as it was written."""
        return self.failure is None and self.wrong_nbytes == 0


@dataclass(frozen=True, kw_only=True)
class PairVerdict:
    """What is done with the peer route from card `source` to card `target`."""

    source: int
    target: int
    finding: Finding
    sentence: str
    choice: KindBySize
    """the route to take from each size on"""

    @property
    def usable(self) -> bool:
        """Whether any copy takes the peer route."""
        return self.finding == "usable"


def judge(proofs: Sequence[Proof], lines: Mapping[RouteKind, Line], source: int, target: int) -> PairVerdict:
    """The verdict over one ordered pair of cards with a peer route.

    Args:
        proofs: every copy of known content from `source` to `target` by P2P.
        lines: what was measured of its routes, one way; a pair without a P2P line was proven only, and is used.
        source: index of the card that is read.
        target: index of the card that is written.
    """
    pair = f"card {source} to card {target}"
    finding, sentence, choice = _found(proofs, lines)
    return PairVerdict(source=source, target=target, finding=finding, sentence=f"{pair}: {sentence}", choice=choice)


def _found(proofs: Sequence[Proof], lines: Mapping[RouteKind, Line]) -> tuple[Finding, str, KindBySize]:
    if not proofs:
        return "fails", "no peer copy was checked; copies go through the host", ALWAYS_HOST
    failed = next((proof for proof in proofs if proof.failure is not None), None)
    if failed is not None:
        sentence = (
            f"a peer copy of {format_nbytes(failed.nbytes)} failed ({failed.failure}); copies go through the host"
        )
        return "fails", sentence, ALWAYS_HOST
    lie = next((proof for proof in proofs if proof.wrong_nbytes), None)
    if lie is not None:
        return "lies", f"{_wrong(lie)}; copies go through the host", ALWAYS_HOST
    arrived = f"peer copies of up to {format_nbytes(max(proof.nbytes for proof in proofs))} arrive as written"
    if "P2P" not in lines:
        return "usable", arrived, ((0, "P2P"),)
    reached = f"reach {_rate(lines['P2P'])}"
    choice = fastest_by_size(lines)
    if all(kind != "P2P" for _, kind in choice):
        sentence = f"{arrived} but {reached}, through the host {_rate(lines['HOST'])}; copies go through the host"
        return "slower", sentence, choice
    return "usable", f"{arrived} and {reached}{_exceptions(choice)}", choice


def _wrong(proof: Proof) -> str:
    bytes_were = "1 byte was" if proof.wrong_nbytes == 1 else f"{proof.wrong_nbytes} bytes were"
    return f"of a peer copy of {format_nbytes(proof.nbytes)} {bytes_were} wrong, the first at {proof.first_wrong}"


def _rate(line: Line) -> str:
    return f"{line.bytes_per_s / 1e9:.3g} GB/s"


def _exceptions(choice: KindBySize) -> str:
    """Where the host is faster after all."""
    ends = [*(from_nbytes for from_nbytes, _ in choice[1:]), None]
    parts = []
    for (start, kind), end in zip(choice, ends, strict=True):
        if kind == "HOST":
            upper = "" if end is None else f" up to {format_nbytes(end)}"
            parts.append(f"{f' from {format_nbytes(start)}' if start else ''}{upper}")
    return f"; the host is faster{' and'.join(parts)}" if parts else ""
