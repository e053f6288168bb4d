"""The weight of each micro-batch in a scalar of the whole batch, from the stories merge_rule told about its parts.

    whole = S / n   with   S = sum of S_i,   n = max(least, sum of n_i)
          = sum of w_i * (S_i / d_i)   with   w_i = d_i / n,   d_i = max(least, n_i)

where n_i counts the items of micro-batch i and `least` is what a clamp keeps the denominator from falling below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from poolrt.runtime.rules import Denominator, Mean, Number, Rule, Sum

_SAME = 1e-9
"""two weights that differ by less are one"""


class CannotMergeError(Exception):
    """The outputs of this step do not fit the rules found by the first one; the step is repeated unsplit."""


def merge_weights(path: str, rules: Sequence[Rule | None]) -> list[float]:
    """The weight of each micro-batch in the scalar output at `path`.

    Args:
        path: where the scalar stands in the model's output, for the message.
        rules: its story in each micro-batch.

    Raises:
        CannotMergeError: if the whole batch's scalar does not follow from the parts.
    """
    sums = [rule for rule in rules if isinstance(rule, Sum)]
    means = [rule for rule in rules if isinstance(rule, Mean)]
    _check_constants(path, [*(rule.constants for rule in sums), *(rule.constants for rule in means)])
    if len(sums) == len(rules):
        return [1.0] * len(rules)
    if len(means) == len(rules) and len({len(mean.denominators) for mean in means}) == 1:
        return _weights_of_means(path, means)
    raise CannotMergeError(
        f"output {path!r} is a scalar that is neither a mean nor a sum over the batch as far as poolrt sees"
    )


def counts_add_up(whole: Rule | None, parts: Sequence[Rule | None]) -> bool:
    """Whether what a mean divides by is counted over the batch: only then its weights hold for other batches too."""
    if not isinstance(whole, Mean):
        return True
    rows = [[float(d.counted) for d in part.denominators] for part in parts if isinstance(part, Mean)]
    if len(rows) < len(parts) or any(len(row) != len(whole.denominators) for row in rows):
        return False
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return all(math.isclose(float(d.counted), n, rel_tol=1e-6) for d, n in zip(whole.denominators, sums, strict=True))


def _check_constants(path: str, rows: Sequence[Sequence[Number]]) -> None:
    values = [[float(constant) for constant in row] for row in rows]
    if any(row != values[0] for row in values):
        raise CannotMergeError(
            f"output {path!r} is combined with numbers that differ between the micro-batches: {values}"
        )


def _weights_of_means(path: str, means: Sequence[Mean]) -> list[float]:
    columns = [_shares(column) for column in zip(*(mean.denominators for mean in means), strict=True)]
    if any(abs(a - b) > _SAME for column in columns[1:] for a, b in zip(column, columns[0], strict=True)):
        raise CannotMergeError(
            f"output {path!r} adds means over different numbers of items, which split unevenly: {columns}"
        )
    if any(mean.shifted for mean in means) and abs(sum(columns[0]) - 1) > _SAME:
        raise CannotMergeError(
            f"output {path!r} adds a number to a mean over so few items that its denominator is clamped"
        )
    return columns[0]


def _shares(denominators: Sequence[Denominator]) -> list[float]:
    least = denominators[0].least
    counts = [float(denominator.counted) for denominator in denominators]
    whole = max(least, sum(counts))
    if whole == 0:  # nothing counts in the whole batch: 0/0 there and in every part
        return [1 / len(counts)] * len(counts)
    return [max(least, count) / whole for count in counts]
