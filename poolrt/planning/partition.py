"""Where to cut: layers in order of their first call, into one contiguous run per card.

    layers   0  1 | 2  3  4 | 5  6  7          card 0: 0 1     card 1: 2 3 4     card 2: 5 6 7

The slowest card sets the pace of a pipeline. The cut wanted is the one whose slowest card is fastest among those where
every run fits its card; among equals, the one that copies least over links. That is the division of a sequence into
blocks with the smallest largest block (Bárány and Grinberg, arXiv 1308.2452), with a cost for cutting and a limit for
each block, solved exactly by dynamic programming as in PipeDream (Narayanan et al. 2019, section 3.1):

    best(cards, layers) = min over first of  max( best(cards - 1, first), busy_s of layers first..layers-1 )
"""

from __future__ import annotations

from collections.abc import Callable

from poolrt.planning.costs import RunCosts

Runs = tuple[tuple[int, int], ...]
"""(first, last) for each card of the line: it holds layers first..last-1"""

Fits = Callable[[int, int, int], bool]
"""fits(card, first, last): whether layers first..last-1 fit the card at this position of the line"""

Amount = Callable[[int, int, int], float]
"""amount(card, first, last): what is added up over the cards of the line"""

_Value = Callable[[float, int, int, int], float]
"""value(of the cards before, card, first, last): of the cards so far; infinite where the run is not allowed"""

_INFINITE = float("inf")


def partition(costs: RunCosts, fits: Fits) -> Runs | None:
    """The best cut of the layers over all cards of the line; None if no cut fits.

    Every card gets a layer where there are enough of them and that fits; otherwise some cards stay empty.
    """
    shortest = 1 if costs.layers >= costs.cards else 0
    runs = _partition(costs, fits, shortest)
    return _partition(costs, fits, 0) if runs is None and shortest else runs


def fastest(costs: RunCosts, fits: Fits) -> Runs | None:
    """As `partition`, without a look at what is copied: half the work, for a cut that is improved afterwards."""
    shortest = 1 if costs.layers >= costs.cards else 0
    runs = _fastest(costs, fits, shortest)
    return _fastest(costs, fits, 0) if runs is None and shortest else runs


def least_total(costs: RunCosts, fits: Fits, amount: Amount) -> Runs | None:
    """The cut whose amounts add up to least, where cards may stay empty; None if no cut fits."""

    def total(before: float, card: int, first: int, last: int) -> float:
        return before + amount(card, first, last)

    return _best(costs, fits, 0, total)


def _partition(costs: RunCosts, fits: Fits, shortest: int) -> Runs | None:
    runs = _fastest(costs, fits, shortest)
    if runs is None:
        return None
    tables = [costs.table(card) for card in range(costs.cards)]
    limit_s = max(tables[card].busy_s[first][last] for card, (first, last) in enumerate(runs))

    def copied(before: float, card: int, first: int, last: int) -> float:
        slow = tables[card].busy_s[first][last] > limit_s
        return _INFINITE if slow else before + tables[card].crossing_s[first][last]

    return _best(costs, fits, shortest, copied)


def _fastest(costs: RunCosts, fits: Fits, shortest: int) -> Runs | None:
    tables = [costs.table(card) for card in range(costs.cards)]

    def slowest(before: float, card: int, first: int, last: int) -> float:
        return max(before, tables[card].busy_s[first][last])

    return _best(costs, fits, shortest, slowest)


def _best(costs: RunCosts, fits: Fits, shortest: int, value: _Value) -> Runs | None:
    """The runs of at least `shortest` layers whose value is least, by dynamic programming over (cards, layers)."""
    best = [0.0] + [_INFINITE] * costs.layers
    choices: list[list[int]] = []
    for card in range(costs.cards):
        more = (costs.cards - 1 - card) * shortest
        row = [_best_first(best, card, last, fits, shortest, value) for last in range(costs.layers + 1 - more)]
        best = [value_ for value_, _ in row] + [_INFINITE] * more
        choices.append([first for _, first in row])
    return None if best[-1] == _INFINITE else _trace(choices, costs.layers)


def _best_first(best: list[float], card: int, last: int, fits: Fits, shortest: int, value: _Value) -> tuple[float, int]:
    """(value, first layer) of the best run of this card that ends before `last`.

    Whether a run fits is the expensive question, so it is asked in order of value, until the first yes.
    """
    firsts = range(last - shortest + 1)
    scored = sorted((value(best[first], card, first, last), -first) for first in firsts if best[first] < _INFINITE)
    for score, negative_first in scored:
        if score == _INFINITE:
            break
        if fits(card, -negative_first, last):
            return score, -negative_first
    return _INFINITE, 0


def _trace(choices: list[list[int]], layers: int) -> Runs:
    runs: list[tuple[int, int]] = []
    last = layers
    for firsts in reversed(choices):
        runs.append((firsts[last], last))
        last = firsts[last]
    return tuple(reversed(runs))
