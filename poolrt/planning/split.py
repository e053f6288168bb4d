"""How one dimension of a tensor is dealt out over cards: for each card the ranges it holds, in order.

    fused q|k|v weight of 4 heads, two cards           row  0    4    8    12
    dim = 0                                                 q....|k....|v....
    pieces = ((0, 2), (4, 6), (8, 10)),        card 0       00.. |00.. |00..
             ((2, 4), (6, 8), (10, 12))        card 1       ..11 |..11 |..11

    two key-value heads of 2 rows on four cards: each head is on two cards, and that is stated
    pieces = ((0, 2),), ((0, 2),), ((2, 4),), ((2, 4),)       replicated = ((0, 4),)

Every index is on some card. It is on several only where `replicated` says so; then the first of them owns it: sums over
a tensor (the norm of a gradient) count it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, TypeVar

from poolrt.errors import ConfigurationError

Range = tuple[int, int]
"""half-open: start and stop"""

Element = TypeVar("Element")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which ranges of dimension `dim` each card holds."""

    dim: int
    """of the tensor, counted from 0"""
    pieces: tuple[tuple[Range, ...], ...]
    """for each card its ranges, ascending and apart; a card's piece is these, one after another"""
    replicated: tuple[Range, ...] = ()
    """where cards may hold the same: ascending and apart"""

    def __post_init__(self) -> None:
        if self.dim < 0 or not self.pieces:
            raise ConfigurationError(f"a split needs a dimension from 0 up and a card, got {self}")
        for ranges in (*self.pieces, self.replicated):
            _check_ranges(ranges)
        self._check_cover()

    # ---- sizes

    @property
    def cards(self) -> int:
        """How many cards there are."""
        return len(self.pieces)

    @property
    def size(self) -> int:
        """Length of the dimension."""
        return max((stop for ranges in self.pieces for _, stop in ranges), default=0)

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Length of each card's piece."""
        return tuple(_length(ranges) for ranges in self.pieces)

    @property
    def is_disjoint(self) -> bool:
        """Whether no index is on two cards."""
        return sum(self.piece_sizes) == self.size

    @property
    def is_whole(self) -> bool:
        """Whether every card holds everything."""
        return all(size == self.size for size in self.piece_sizes)

    # ---- making one

    @classmethod
    def whole(cls, size: int, cards: int, dim: int = 0) -> Split:
        """Every card holds all of the dimension."""
        everything = ((0, size),) if size else ()
        return cls(dim=dim, pieces=(everything,) * cards, replicated=everything if cards > 1 else ())

    @classmethod
    def from_shares(cls, size: int, shares: Sequence[float], granule: int = 1, dim: int = 0) -> Split:
        """One run per card, in proportion to `shares`, cut between granules only; every card gets at least one.

            size 12, granule 2, shares 2 : 1      000000001111

        Largest remainders get what proportion leaves over (Hamilton's method); among equal ones the first card.

        Args:
            size: length of the dimension.
            shares: what each card should get, relative to the others; positive.
            granule: what is never cut: the rows of a head, say.
            dim: of the tensor.

        Raises:
            ConfigurationError: if the granules do not fill the dimension or are fewer than the cards.
        """
        return cls.from_counts(apportion(size, shares, granule), dim)

    @classmethod
    def from_counts(cls, counts: Sequence[int], dim: int = 0) -> Split:
        """One run per card, of these lengths, one after another."""
        bounds = [sum(counts[:card]) for card in range(len(counts) + 1)]
        return cls(dim=dim, pieces=tuple(((first, last),) if first < last else () for first, last in pairwise(bounds)))

    @classmethod
    def from_indices(cls, indices: Sequence[Iterable[int]], dim: int = 0) -> Split:
        """The split in which each card holds these indices; those on several cards become `replicated`."""
        sets = [set(card) for card in indices]
        shared = {index for index in chain(*sets) if sum(index in card for card in sets) > 1}
        return cls(dim=dim, pieces=tuple(map(_runs, sets)), replicated=_runs(shared))

    # ---- using it

    def indices(self, card: int) -> list[int]:
        """The indices that `card` holds, in order."""
        return [index for start, stop in self.pieces[card] for index in range(start, stop)]

    def take(self, values: Sequence[Element], card: int) -> list[Element]:
        """The elements of `values` that `card` holds."""
        return [value for start, stop in self.pieces[card] for value in values[start:stop]]

    def put_together(self, pieces: Sequence[Sequence[Element]]) -> list[Element]:
        """The inverse of `take` for all cards; what several hold is taken from its owner.

        Raises:
            ConfigurationError: if the pieces are not as long as the split says.
        """
        lengths = tuple(len(piece) for piece in pieces)
        if lengths != self.piece_sizes:
            raise ConfigurationError(f"pieces of {lengths} elements do not fit a split into {self.piece_sizes}")
        found: dict[int, Element] = {}
        for card, piece in enumerate(pieces):
            for index, value in zip(self.indices(card), piece, strict=True):
                found.setdefault(index, value)
        return [found[index] for index in range(self.size)]

    def owned(self, card: int) -> tuple[Range, ...]:
        """The ranges of `card` that no card before it holds."""
        before = {index for earlier in range(card) for index in self.indices(earlier)}
        return _runs(set(self.indices(card)) - before)

    def within(self, card: int, start: int, stop: int) -> tuple[Range, ...]:
        """Where the piece of `card` holds indices of start..stop, as ranges of the piece."""
        inside = [place for place, index in enumerate(self.indices(card)) if start <= index < stop]
        return _runs(inside)

    # ---- JSON

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        form: dict[str, Any] = {"dim": self.dim, "pieces": [[list(item) for item in piece] for piece in self.pieces]}
        if self.replicated:
            form["replicated"] = [list(item) for item in self.replicated]
        return form

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Split:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: if the form is not that of a split.
        """
        try:
            pieces = tuple(tuple((int(a), int(b)) for a, b in piece) for piece in form["pieces"])
            replicated = tuple((int(a), int(b)) for a, b in form.get("replicated", ()))
            return cls(dim=int(form["dim"]), pieces=pieces, replicated=replicated)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"{form!r} is no split: {error}") from error

    # ---- checks

    def _check_cover(self) -> None:
        held = sorted(chain(*self.pieces))
        reached = 0
        for start, stop in held:
            if start > reached:
                raise ConfigurationError(f"no card holds indices {reached} to {start - 1} of the split {self.pieces}")
            if start < reached and not _inside((start, min(stop, reached)), self.replicated):
                raise ConfigurationError(
                    f"indices {start} to {min(stop, reached) - 1} are on several cards in {self.pieces}; "
                    "say so in `replicated` if that is meant"
                )
            reached = max(reached, stop)


def apportion(size: int, shares: Sequence[float], granule: int = 1) -> tuple[int, ...]:
    """How much of `size` each card gets; see `Split.from_shares`.

    Raises:
        ConfigurationError: if the granules do not fill the size or are fewer than the cards.
    """
    if granule < 1 or size % granule or any(share <= 0 for share in shares) or size // granule < len(shares):
        raise ConfigurationError(
            f"a dimension of {size} cannot be dealt out in granules of {granule} to cards with shares {list(shares)}: "
            "every card needs a positive share and a granule, and granules must fill the dimension"
        )
    spare = size // granule - len(shares)  # beyond the one that each gets
    wanted = [share / sum(shares) * (size // granule) for share in shares]
    above = [max(0.0, want - 1) for want in wanted]
    exact = [spare * part / (sum(above) or 1.0) for part in above]
    counts = [1 + int(part) for part in exact]
    remainders = sorted(range(len(shares)), key=lambda card: (int(exact[card]) - exact[card], card))
    for card in remainders[: size // granule - sum(counts)]:
        counts[card] += 1
    return tuple(count * granule for count in counts)


def _check_ranges(ranges: tuple[Range, ...]) -> None:
    bounds = list(chain(*ranges))
    apart = all(before[1] <= after[0] for before, after in pairwise(ranges))
    if not apart or any(start >= stop for start, stop in ranges) or (bounds and bounds[0] < 0):
        raise ConfigurationError(f"ranges must be ascending, apart and not empty, got {ranges}")


def _length(ranges: Iterable[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _inside(inner: Range, ranges: tuple[Range, ...]) -> bool:
    """Whether `inner` is covered by ranges that are ascending and apart; neighbours count as one."""
    return _length((max(inner[0], a), min(inner[1], b)) for a, b in ranges if a < inner[1] and inner[0] < b) == (
        inner[1] - inner[0]
    )


def _runs(indices: Iterable[int]) -> tuple[Range, ...]:
    return tuple(_iterate_runs(sorted(indices)))


def _iterate_runs(ascending: list[int]) -> Iterator[Range]:
    start = 0
    for place, index in enumerate(ascending):
        if place + 1 == len(ascending) or ascending[place + 1] != index + 1:
            yield ascending[start], index + 1
            start = place + 1
