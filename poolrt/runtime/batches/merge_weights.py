"""The weight of each micro-batch in a scalar of the whole batch, from the stories merge_rule told about its parts.

    whole = S / n   with   S = sum of S_i,   n = max(least, sum of n_i)
          = sum of w_i * (S_i / d_i)   with   w_i = d_i / n,   d_i = max(least, n_i)

where n_i counts the items of micro-batch i and `least` is what a clamp keeps the denominator from falling below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from poolrt.runtime.batches.rules import Denominator, Mean, Number, Rule, Sum

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


def stories_agree(whole: Rule | None, parts: Sequence[Rule | None]) -> bool:
    """Whether the parts' stories make the whole's: the same constants, and counts that add up.

    Values may agree by chance in one batch (all sizes even, all zero); what agrees here does so in other batches too.
    """
    if not isinstance(whole, (Sum, Mean)):
        return True
    rows = [(part.constants, _counts(part)) for part in parts if isinstance(part, (Sum, Mean))]
    if len(rows) < len(parts) or any(len(counts) != len(_counts(whole)) for _, counts in rows):
        return False
    constants = [float(constant) for constant in whole.constants]
    if any([float(constant) for constant in own] != constants for own, _ in rows):
        return False
    sums = [sum(column) for column in zip(*(counts for _, counts in rows), strict=True)]
    return all(math.isclose(count, n, rel_tol=1e-6) for count, n in zip(_counts(whole), sums, strict=True))


def _counts(rule: Sum | Mean) -> list[float]:
    """Everything that must add up over the batch."""
    denominators = rule.denominators if isinstance(rule, Mean) else ()
    return [*rule.items, *(float(denominator.counted) for denominator in denominators)]


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
    if any(share == 0 and not _all_nothing(mean) for share, mean in zip(columns[0], means, strict=True)):
        raise CannotMergeError(f"output {path!r} divides something by zero in a micro-batch")
    return columns[0]


def _all_nothing(mean: Mean) -> bool:
    """Whether nothing was divided by nothing, as far as it was watched; something would be lost with a weight of 0."""
    return all(d.quotient is None or bool(d.quotient.isnan()) for d in mean.denominators)


def _shares(denominators: Sequence[Denominator]) -> list[float]:
    least = denominators[0].least
    counts = [float(denominator.counted) for denominator in denominators]
    whole = max(least, sum(counts))
    if whole == 0:  # nothing counts in the whole batch: 0/0 there and in every part
        return [1 / len(counts)] * len(counts)
    return [max(least, count) / whole for count in counts]
