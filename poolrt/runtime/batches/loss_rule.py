"""The rule of each loss of torch.nn.functional: what its mean divides by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from poolrt.runtime.batches.rules import Denominator, Mean, Number, Rule, Sum
from poolrt.transfer.move import move

_CLASS_LOSSES: set[Callable[..., Any]] = {F.cross_entropy, F.nll_loss}
LOSSES: set[Callable[..., Any]] = _CLASS_LOSSES | {
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.kl_div,
}


def loss_rule(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    """The rule of a scalar that `function`, one of LOSSES, returned; None if it cannot be merged.

    torch.nn.functional hands its losses on as (input, target, options by name).
    """
    reduction = kwargs.get("reduction", "mean")
    if len(args) != 2 or kwargs.get("size_average") is not None or kwargs.get("reduce") is not None:
        return None
    scores, target = args
    if reduction == "sum":
        return Sum(items=(float(scores.numel()),))
    if reduction == "batchmean":
        return Mean((Denominator(float(scores.shape[0])),))
    if reduction != "mean":
        return None
    if function in _CLASS_LOSSES:
        return Mean((Denominator(_class_count(scores, target, kwargs)),))
    count = math.prod(torch.broadcast_shapes(scores.shape, target.shape))
    return Mean((Denominator(float(count)),)) if kwargs.get("weight") is None else None


def _class_count(scores: Tensor, target: Tensor, kwargs: dict[str, Any]) -> Number:
    """What cross_entropy's and nll_loss's mean divides by: the labels that count, or the sum of their weights."""
    if target.is_floating_point():
        return target.numel() / scores.shape[1 if scores.dim() > 1 else 0]
    counted = target != kwargs.get("ignore_index", -100)
    weight = kwargs.get("weight")
    return counted.sum() if weight is None else move(weight, target.device)[target[counted]].sum()
