"""How a scalar of the whole batch follows from the scalars of its micro-batches.

A mean of means is wrong as soon as the micro-batches count differently (ignored labels, uneven sizes). So while glue
code runs, every scalar carries the story of its making:

    loss  = cross_entropy(logits, labels)      Mean(denominators=[labels that count])
    total = (loss_per_token * mask).sum()      Sum
    total / mask.sum()                         Mean(denominators=[mask.sum()])
    loss + auxiliary                           Mean(denominators=[n1, n2]), merged only if n1 and n2 split alike

A scalar without a story cannot be merged; the batch then stays whole, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ATTRIBUTE = "_poolrt_merge_rule"


@dataclass(frozen=True)
class Sum:
    """The whole batch's scalar is the sum of the micro-batches'."""

    unclamped: Tensor | None = None
    """the sum before a clamp that keeps a division from zero"""


@dataclass(frozen=True)
class Mean:
    """It is their mean, weighted by a denominator; several denominators must split in the same proportions."""

    denominators: tuple[float | Tensor, ...]


@dataclass(frozen=True)
class Unknown:
    """It depends on the batch in a way that cannot be merged."""


Rule = Sum | Mean | Unknown


def rule_of(tensor: Tensor) -> Rule | None:
    """The story told about `tensor`; None for one that does not depend on the batch, or is no scalar."""
    return getattr(tensor, _ATTRIBUTE, None)


def tell(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Note on `result` how `function` made it, if it is a scalar or was made from one. Returns `result`."""
    if isinstance(result, Tensor):
        rule = _story(function, args, kwargs, result)
        if rule is not None:
            setattr(result, _ATTRIBUTE, rule)
    elif isinstance(result, (tuple, list)):
        _tell_each(args, kwargs, result)
    return result


def _tell_each(args: tuple[Any, ...], kwargs: dict[str, Any], results: Sequence[Any]) -> None:
    """Several results: numbers among them depend on the batch; indices (of experts, say) are no quantities."""
    tensors = list(_tensors((*args, *kwargs.values())))
    from_scalars = any(rule_of(tensor) is not None for tensor in tensors)
    from_batch = any(tensor.dim() > 0 for tensor in tensors)
    for result in _tensors(results):
        if result.is_floating_point() and (from_scalars or (from_batch and result.dim() == 0)):
            setattr(result, _ATTRIBUTE, Unknown())


def _story(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Rule | None:
    if function in _VALUE_FREE:
        return None
    tensors = list(_tensors((*args, *kwargs.values())))
    from_scalars = any(rule_of(tensor) is not None for tensor in tensors)
    if result.dim() > 0:
        return Unknown() if from_scalars else None
    if not from_scalars and not any(tensor.dim() > 0 for tensor in tensors):
        return None
    if function is Tensor.__getitem__ and not result.is_floating_point():
        return None
    if any(isinstance(rule_of(tensor), Unknown) for tensor in tensors):
        return Unknown()
    first = args[0] if args else kwargs.get("input")
    rule = _rule_for(function, first, args, kwargs) if isinstance(first, Tensor) or len(args) > 1 else None
    return rule or Unknown()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _rule_for(function: Callable[..., Any], first: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    if function in _LOSSES:
        return _loss_rule(function, args, kwargs)
    if function in _SUMS:
        return Sum() if first.dim() > 0 else rule_of(first)
    if function in _MEANS:
        return Mean((float(first.numel()),)) if first.dim() > 0 else rule_of(first)
    if function in _PASSES_ON:
        return rule_of(first) if first.dim() == 0 else None
    if function in _CLAMPS:
        told = rule_of(first)
        return Sum(unclamped=first.detach()) if isinstance(told, Sum) else None
    if function in _ADDS and len(args) == 2:
        return _added(args[0], args[1])
    if function in _SCALES and len(args) == 2:
        return _scaled(function, args[0], args[1])
    return None


def _told(value: Any) -> Rule | None:
    return rule_of(value) if isinstance(value, Tensor) else None


def _added(left: Any, right: Any) -> Rule | None:
    told_left, told_right = _told(left), _told(right)
    if isinstance(told_left, Mean) and isinstance(told_right, Mean):
        return Mean(told_left.denominators + told_right.denominators)
    if isinstance(told_left, Sum) and isinstance(told_right, Sum):
        return Sum()
    told, constant = (told_left, right) if told_left is not None else (told_right, left)
    if isinstance(constant, Tensor) and rule_of(constant) is not None:
        return None
    # A constant may be added to a mean; in a sum it would count once per micro-batch. Python's sum() starts from 0.
    return told if isinstance(told, Mean) or (not isinstance(constant, Tensor) and constant == 0) else None


def _scaled(function: Callable[..., Any], left: Any, right: Any) -> Rule | None:
    """A scalar times or over a constant keeps its rule; a sum over a sum is a mean with the latter as denominator."""
    told_left, told_right = _told(left), _told(right)
    if told_right is None:
        return told_left
    if isinstance(told_left, Sum) and isinstance(told_right, Sum) and function in _DIVISIONS:
        return Mean((right.detach() if told_right.unclamped is None else told_right.unclamped,))
    return told_right if told_left is None and function not in _DIVISIONS else None


def _loss_rule(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    reduction = kwargs.get("reduction", "mean")
    if reduction == "sum":
        return Sum()
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if target is None or reduction == "none":
        return None
    if reduction == "batchmean":
        return Mean((float(args[0].shape[0]),))
    if function in _CLASS_LOSSES:
        return Mean((_class_denominator(target, args, kwargs),))
    return Mean((float(target.numel()),)) if kwargs.get("weight") is None else None


def _class_denominator(target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | Tensor:
    """What cross_entropy's and nll_loss's mean divides by: the labels that count, or the sum of their weights."""
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    if target.is_floating_point():
        scores = args[0] if args else kwargs["input"]
        return float(target.numel() / scores.shape[1 if scores.dim() > 1 else 0])
    counted = target != kwargs.get("ignore_index", -100)
    return counted.sum() if weight is None else weight.to(target.device)[target[counted]].sum()


_CLASS_LOSSES: set[Callable[..., Any]] = {F.cross_entropy, F.nll_loss}
_LOSSES: set[Callable[..., Any]] = _CLASS_LOSSES | {
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.kl_div,
}
_SUMS: set[Callable[..., Any]] = {torch.sum, Tensor.sum}
_MEANS: set[Callable[..., Any]] = {torch.mean, Tensor.mean}
_ADDS: set[Callable[..., Any]] = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_,
}  # fmt: skip
_DIVISIONS: set[Callable[..., Any]] = {
    torch.div,
    Tensor.div,
    Tensor.__truediv__,
    Tensor.__itruediv__,
    torch.true_divide,
}
_SCALES: set[Callable[..., Any]] = _DIVISIONS | {
    torch.mul,
    Tensor.mul,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__imul__,
}
# They take shape, dtype and device from a tensor, but none of its values.
_VALUE_FREE: set[Callable[..., Any]] = {
    Tensor.new_ones, Tensor.new_zeros, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor,
    torch.ones_like, torch.zeros_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like,
}  # fmt: skip
_CLAMPS: set[Callable[..., Any]] = {
    torch.clamp,
    Tensor.clamp,
    torch.clamp_min,
    Tensor.clamp_min,
    Tensor.clip,
    torch.clip,
}
_PASSES_ON: set[Callable[..., Any]] = {
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.neg, Tensor.__neg__, torch.neg,
    Tensor.squeeze, torch.squeeze, Tensor.view, Tensor.reshape, Tensor.clone, torch.clone, Tensor.contiguous,
    Tensor.type, Tensor.type_as, Tensor.cpu, Tensor.cuda,
}  # fmt: skip
