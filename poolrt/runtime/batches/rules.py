"""What can be said about a scalar of a batch: the values that merge_rule notes and merge_weights puts to use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class Denominator:
    """What one micro-batch divided by: the larger of `counted` and `least`."""

    counted: Number
    """the items that count; those of the micro-batches add up to those of the whole batch"""
    least: float = -math.inf
    """what a clamp keeps the division from falling below"""
    quotient: Tensor | None = None
    """what came out, where poolrt cannot know that nothing over nothing is no number"""


@dataclass(frozen=True)
class Sum:
    """The whole batch's scalar is the sum of the micro-batches'."""

    constants: tuple[Number, ...] = ()
    """what it was multiplied with; must be the same in every micro-batch"""
    items: tuple[float, ...] = ()
    """how many items were summed; those of the micro-batches add up to those of the whole batch"""


@dataclass(frozen=True)
class ClampedSum:
    """A sum that a clamp keeps above `least`: good for dividing by, and for nothing else."""

    denominator: Denominator
    constants: tuple[Number, ...] = ()
    items: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mean:
    """It is their mean, weighted by a denominator; several denominators must split in the same proportions."""

    denominators: tuple[Denominator, ...]
    constants: tuple[Number, ...] = ()
    items: tuple[float, ...] = ()
    shifted: bool = False
    """a constant was added, so the weights must add up to one"""


@dataclass(frozen=True)
class Constant:
    """It was made from a number, not from the batch."""

    value: float


@dataclass(frozen=True)
class Unknown:
    """It depends on the batch in a way that cannot be merged."""


Rule = Sum | ClampedSum | Mean | Unknown
