r"""Collectives as plain values: which piece goes from which card to which, and what is added where. No torch.

One shot, all-reduce: every card gets everything and adds in the order of the cards. One step over the links, but n - 1
whole tensors come in.

    card 0   x0 ----.----.----> x0+x1+x2
                     \  /
    card 1   x1 ------><------> x0+x1+x2        every pair, both ways at once
                     /  \
    card 2   x2 ----'----'----> x0+x1+x2

Two shots: card p adds piece p of everybody, then everybody gets it. Two steps, 2 (n - 1) / n of a tensor come in. Each
piece is added in the order of the cards as well, so the bits are those of one shot.

             brings        first shot    second shot
    card 0   a0 b0 c0      a0+a1+a2      a b c
    card 1   a1 b1 c1      b0+b1+b2      a b c
    card 2   a2 b2 c2      c0+c1+c2      a b c

Ring: each card adds its own piece to what its neighbour sends and sends it on; then the sums go round. 2 (n - 1) steps
over n links only, each of which carries 2 (n - 1) / n of a tensor. A piece's sum ends on the card of its number, so it
starts one card later: the order of its terms, and with it the last bits, is turned round. All cards get the same ones.

             starts        to the next card      and so on      round again
    card 0   c0            b2+b0                 a1+a2+a0       a b c
    card 1   a1            c0+c1                 b2+b0+b1       a b c
    card 2   b2            a1+a2                 c0+c1+c2       a b c

A plan is a list of values in the order in which they come to be; a value names earlier ones by number, which is all
there is of dependencies. Nothing is written twice.

(Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH"; Patarasuk, Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations".)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poolrt.errors import ConfigurationError


@dataclass(frozen=True)
class Given:
    """Elements begin to end of what a card brings; of no elements also where a card brings nothing."""

    card: int
    begin: int
    end: int


@dataclass(frozen=True)
class Sent:
    """A copy of an earlier value on another card."""

    value: int
    card: int


@dataclass(frozen=True)
class Added:
    """The sum of earlier values of one card, in this order."""

    values: tuple[int, ...]


Value = Given | Sent | Added


@dataclass(frozen=True, kw_only=True)
class CollectivePlan:
    """Values in the order in which they come to be."""

    values: tuple[Value, ...]
    results: tuple[tuple[int, ...], ...]
    """per card: the numbers of the values that make up its result one after another; none for a card without one"""

    def card_of(self, number: int) -> int:
        """The card that holds a value."""
        value = self.values[number]
        return self.card_of(value.values[0]) if isinstance(value, Added) else value.card


def cut(elements: int, pieces: int) -> list[tuple[int, int]]:
    """(begin, end) of `pieces` pieces whose sizes differ by one at most; where elements are few, some have none."""
    ends = [elements * (piece + 1) // pieces for piece in range(pieces)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def all_reduce_one_shot(cards: int, elements: int) -> CollectivePlan:
    """Every card gets all of every other and adds."""
    draft = _Draft(cards)
    given = [draft.given(card, 0, elements) for card in range(cards)]
    there = [[draft.sent(given[source], target) for source in range(cards)] for target in range(cards)]
    return draft.finished([[draft.added(terms)] for terms in there])


def all_reduce_two_shot(cards: int, elements: int) -> CollectivePlan:
    """Card p adds piece p, then all get it."""
    draft = _Draft(cards)
    sums = _scatter_sums(draft, cut(elements, cards))
    return draft.finished(_gather_everywhere(draft, sums))


def all_reduce_ring(order: Sequence[int], elements: int) -> CollectivePlan:
    """Pieces go round the cards in this order, once to be added and once to be known."""
    draft = _Draft(len(order))
    sums = _scatter_sums_by_ring(draft, order, elements)
    return draft.finished(_gather_by_ring(draft, order, sums))


def reduce_one_shot(cards: int, elements: int, root: int) -> CollectivePlan:
    """The root gets all of every other and adds."""
    draft = _Draft(cards)
    there = [draft.sent(draft.given(source, 0, elements), root) for source in range(cards)]
    return draft.finished_at(root, [draft.added(there)])


def reduce_two_shot(cards: int, elements: int, root: int) -> CollectivePlan:
    """Card p adds piece p, the root collects."""
    draft = _Draft(cards)
    sums = _scatter_sums(draft, cut(elements, cards))
    return draft.finished_at(root, [draft.sent(value, root) for value in sums])


def reduce_ring(order: Sequence[int], elements: int, root: int) -> CollectivePlan:
    """Pieces go round to be added, the root collects."""
    draft = _Draft(len(order))
    sums = _scatter_sums_by_ring(draft, order, elements)
    return draft.finished_at(root, [draft.sent(value, root) for value in sums])


def reduce_scatter(spans: Sequence[tuple[int, int]]) -> CollectivePlan:
    """Card p ends with the sum of piece p, spans[p] of everybody's: the first of two shots."""
    draft = _Draft(len(spans))
    return draft.finished([[value] for value in _scatter_sums(draft, spans)])


def broadcast_one_shot(cards: int, elements: int, root: int) -> CollectivePlan:
    """The root sends all to everybody."""
    draft = _Draft(cards)
    given = draft.given(root, 0, elements)
    return draft.finished([[draft.sent(given, card)] for card in range(cards)])


def broadcast_two_shot(cards: int, elements: int, root: int) -> CollectivePlan:
    """The root sends piece p to card p, which sends it to everybody."""
    draft = _Draft(cards)
    given = [draft.given(root, *span) for span in cut(elements, cards)]
    pieces = [draft.sent(value, card) for card, value in enumerate(given)]
    results = [given if card == root else [draft.sent(piece, card) for piece in pieces] for card in range(cards)]
    return draft.finished(results)


def broadcast_ring(order: Sequence[int], elements: int, root: int) -> CollectivePlan:
    """Pieces go from neighbour to neighbour; the next piece follows at once. The last card need not pass them on."""
    draft = _Draft(len(order))
    at = list(order).index(root)
    chain = [*order[at:], *order[:at]]
    results: list[list[int]] = [[] for _ in order]
    for span in cut(elements, 2 * len(order)):
        value = draft.given(root, *span)
        for card in chain:
            value = draft.sent(value, card)
            results[card].append(value)
    return draft.finished(results)


def all_gather_one_shot(elements: Sequence[int]) -> CollectivePlan:
    """Everybody sends all it brings to everybody; card k brings elements[k]."""
    draft = _Draft(len(elements))
    given = [draft.given(card, 0, count) for card, count in enumerate(elements)]
    return draft.finished(_gather_everywhere(draft, given))


def all_gather_ring(order: Sequence[int], elements: Sequence[int]) -> CollectivePlan:
    """Everybody's goes round the cards in this order."""
    draft = _Draft(len(order))
    given = [draft.given(card, 0, count) for card, count in enumerate(elements)]
    return draft.finished(_gather_by_ring(draft, order, given))


class _Draft:
    """A plan in the making. A piece without elements takes no step: it is given where it is wanted."""

    def __init__(self, cards: int) -> None:
        if cards < 1:
            raise ConfigurationError("a collective needs at least one card")
        self.cards = cards
        self._values: list[Value] = []
        self._homes: list[int] = []
        self._empty: list[bool] = []

    def _new(self, value: Value, card: int, empty: bool) -> int:
        self._values.append(value)
        self._homes.append(card)
        self._empty.append(empty)
        return len(self._values) - 1

    def given(self, card: int, begin: int, end: int) -> int:
        return self._new(Given(card, begin, end), card, begin == end)

    def sent(self, value: int, card: int) -> int:
        if self._homes[value] == card:
            return value
        if self._empty[value]:
            return self.given(card, 0, 0)
        return self._new(Sent(value, card), card, False)

    def added(self, values: Sequence[int]) -> int:
        if len(values) == 1 or self._empty[values[0]]:
            return values[0]
        return self._new(Added(tuple(values)), self._homes[values[0]], False)

    def finished(self, results: Sequence[Sequence[int]]) -> CollectivePlan:
        return CollectivePlan(values=tuple(self._values), results=tuple(map(tuple, results)))

    def finished_at(self, root: int, result: Sequence[int]) -> CollectivePlan:
        return self.finished([result if card == root else [] for card in range(self.cards)])


def _scatter_sums(draft: _Draft, spans: Sequence[tuple[int, int]]) -> list[int]:
    """The sum of piece p, on card p. All copies come first: none waits for a sum."""
    there = [
        [draft.sent(draft.given(source, *span), target) for source in range(draft.cards)]
        for target, span in enumerate(spans)
    ]
    return [draft.added(terms) for terms in there]


def _scatter_sums_by_ring(draft: _Draft, order: Sequence[int], elements: int) -> list[int]:
    """The sum of piece p, which started one place after place p of the ring and ends there; in order of pieces.

    step       0      1      2          place of piece p's sum, for 4 places
    piece 0    1->2   2->3   3->0       step s goes from place p + 1 + s to the next
    piece 1    2->3   3->0   0->1
    """
    places = len(order)
    spans = cut(elements, places)
    sums = [draft.given(order[(piece + 1) % places], *span) for piece, span in enumerate(spans)]
    for step in range(places - 1):
        cards = [order[(piece + 2 + step) % places] for piece in range(places)]
        there = [draft.sent(value, card) for value, card in zip(sums, cards, strict=True)]
        own = [draft.given(card, *span) for card, span in zip(cards, spans, strict=True)]
        sums = [draft.added(terms) for terms in zip(there, own, strict=True)]
    return sums


def _gather_everywhere(draft: _Draft, pieces: Sequence[int]) -> list[list[int]]:
    """Every piece on every card."""
    return [[draft.sent(piece, card) for piece in pieces] for card in range(draft.cards)]


def _gather_by_ring(draft: _Draft, order: Sequence[int], pieces: Sequence[int]) -> list[list[int]]:
    """Every piece on every card, each passed on from neighbour to neighbour, all pieces one step at a time."""
    places = len(order)
    place_of = {card: place for place, card in enumerate(order)}
    begins = [place_of[draft._homes[piece]] for piece in pieces]
    held = list(pieces)
    results: list[list[int]] = [[0] * len(pieces) for _ in order]
    for step in range(places):
        for number, begin in enumerate(begins):
            card = order[(begin + step) % places]
            held[number] = draft.sent(held[number], card)
            results[card][number] = held[number]
    return results
