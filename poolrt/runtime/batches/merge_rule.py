"""How a scalar of the whole batch follows from the scalars of its micro-batches.

A mean of means is wrong as soon as the micro-batches count differently (ignored labels, uneven sizes). So while glue
code runs, every scalar carries the story of its making:

    loss  = cross_entropy(logits, labels)      Mean(denominators=[labels that count])
    total = (loss_per_token * mask).sum()      Sum
    total / mask.sum()                         Mean(denominators=[mask.sum()])
    total / mask.sum().clamp(min=1)            Mean(denominators=[the clamped sum, and the sum before the clamp])
    loss + auxiliary                           Mean(denominators=[n1, n2]), merged only if n1 and n2 split alike
    0.5 * loss + weight                        Mean(denominators=[n], constants=[0.5, weight], shifted)

Constants are merged into a story because poolrt cannot see whether they are any: they must turn out to be the same in
every micro-batch. A scalar without a story cannot be merged; the batch then stays whole, and the plan says so. What the
stories say is put to use in merge_weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.batches.loss_rule import LOSSES, loss_rule
from poolrt.runtime.batches.rules import ClampedSum, Constant, Denominator, Mean, Number, Rule, Sum, Unknown

_ATTRIBUTE = "_poolrt_merge_rule"


def rule_of(tensor: Tensor) -> Rule | None:
    """The story told about `tensor`; None for one that does not depend on the batch, or is no scalar."""
    told = getattr(tensor, _ATTRIBUTE, None)
    return None if isinstance(told, Constant) else told


def tell(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Note on `result` how `function` made it, if it is a scalar or was made from one. Returns `result`."""
    if isinstance(result, Tensor):
        _note(result, _story(function, args, kwargs, result))
    elif isinstance(result, (tuple, list)):
        _tell_each(args, kwargs, result)
    elif function is Tensor.__setitem__ and _from_scalars(_tensors(args[1:])):
        _note(args[0], Unknown())
    return result


def _note(tensor: Tensor, story: Rule | Constant | None) -> None:
    if story is not None:
        setattr(tensor, _ATTRIBUTE, story)
    elif hasattr(tensor, _ATTRIBUTE):  # changed in place: what was told no longer holds
        delattr(tensor, _ATTRIBUTE)


def carry_story(tensor: Tensor, copy: Tensor) -> Tensor:
    """What is told about `tensor` holds for its `copy` on another card. Returns `copy`."""
    if hasattr(tensor, _ATTRIBUTE):
        setattr(copy, _ATTRIBUTE, getattr(tensor, _ATTRIBUTE))
    return copy


def _from_scalars(tensors: Iterable[Tensor]) -> bool:
    return any(rule_of(tensor) is not None for tensor in tensors)


def _tell_each(args: tuple[Any, ...], kwargs: dict[str, Any], results: Sequence[Any]) -> None:
    """Several results: numbers among them depend on the batch; indices (of experts, say) are no quantities."""
    tensors = list(_tensors((*args, *kwargs.values())))
    from_batch = any(tensor.dim() > 0 for tensor in tensors)
    for result in _tensors(results):
        if result.is_floating_point() and (_from_scalars(tensors) or (from_batch and result.dim() == 0)):
            _note(result, Unknown())


def _story(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> Rule | Constant | None:
    tensors = list(_tensors((*args, *kwargs.values())))
    if result.dim() > 0:
        return Unknown() if _from_scalars(tensors) else None
    if not tensors or function in _FRESH:
        return Constant(float(result)) if result.is_floating_point() and not result.is_meta else None
    if not _from_scalars(tensors) and not any(tensor.dim() > 0 for tensor in tensors):
        return None
    if function is Tensor.__getitem__ and not result.is_floating_point():
        return None
    if any(isinstance(rule_of(tensor), Unknown) for tensor in tensors):
        return Unknown()
    return _rule_for(function, args, kwargs, result) or Unknown()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _rule_for(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> Rule | None:
    if function in LOSSES:
        return loss_rule(function, args, kwargs)
    if len(args) == 2 and not kwargs and function in _ADDS:
        return _added(*args, result)
    if len(args) == 2 and not kwargs and function in _SCALES:
        return _scaled(function, *args, result)
    first = args[0] if args else kwargs.get("input")
    return _rule_for_one(function, first, args, kwargs, result) if isinstance(first, Tensor) else None


def _rule_for_one(
    function: Callable[..., Any], first: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> Rule | None:
    told = rule_of(first)
    if function in _SUMS:
        return Sum(items=(float(first.numel()),)) if first.dim() > 0 else told
    if function in _MEANS:
        return Mean((Denominator(float(first.numel())),)) if first.dim() > 0 else told
    if function in _PASSES_ON:
        rounded = first.is_floating_point() and not result.is_floating_point()
        return told if first.dim() == 0 and not rounded else None
    if function in _NEGATIONS:
        return told if isinstance(told, (Sum, Mean)) else None
    if function in _CLAMPS and isinstance(told, Sum):
        least = _least(args, kwargs)
        return None if least is None else ClampedSum(Denominator(first.detach(), least), told.constants, told.items)
    return None


def _least(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The lower bound of a clamp that has no upper one."""
    bounds = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
    least = bounds.pop("min", None)
    only_lower = all(bound is None for bound in bounds.values())
    return float(least) if only_lower and isinstance(least, (int, float)) else None


def _told(value: Any) -> Rule | None:
    return rule_of(value) if isinstance(value, Tensor) else None


def _constant(value: Any, result: Tensor) -> Number | None:
    """An operand without a story, as it was before the operation; None if that cannot be known any more."""
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, Tensor):
        return None
    told = getattr(value, _ATTRIBUTE, None)
    if isinstance(told, Constant):
        return told.value
    return None if value is result else value.detach()


def _added(left: Any, right: Any, result: Tensor) -> Rule | None:
    """The sum or difference of two operands, of which one at least has a story."""
    told_left, told_right = _told(left), _told(right)
    if isinstance(told_left, Mean) and isinstance(told_right, Mean):
        return Mean(
            told_left.denominators + told_right.denominators,
            told_left.constants + told_right.constants,
            told_left.items + told_right.items,
            told_left.shifted or told_right.shifted,
        )
    if isinstance(told_left, Sum) and isinstance(told_right, Sum):
        return Sum(told_left.constants + told_right.constants, told_left.items + told_right.items)
    if told_left is not None and told_right is not None:
        return None
    told = told_left or told_right
    constant = _constant(right if told_left is not None else left, result)
    if constant is None:
        return None
    if isinstance(told, Mean):
        return replace(told, constants=(*told.constants, constant), shifted=True)
    # In a sum a constant would count once per micro-batch. Zero may: Python's sum() starts from it.
    return told if isinstance(told, Sum) and not isinstance(constant, Tensor) and constant == 0 else None


def _scaled(function: Callable[..., Any], left: Any, right: Any, result: Tensor) -> Rule | None:
    """A scalar times or over a constant keeps its rule; a sum over a sum is a mean with the latter as denominator."""
    told_left, told_right = _told(left), _told(right)
    if told_left is not None and told_right is not None:
        return _quotient(told_left, told_right, right, result) if function in _DIVISIONS else None
    if told_left is None and function in _DIVISIONS:
        return None
    told = told_left or told_right
    constant = _constant(right if told_left is not None else left, result)
    if constant is None or not isinstance(told, (Sum, Mean)):
        return None
    return replace(told, constants=(*told.constants, constant))


def _quotient(told_left: Rule, told_right: Rule, right: Tensor, result: Tensor) -> Mean | None:
    # A denominator that learns has a gradient of its own, which is not the mean of the micro-batches' gradients.
    if not isinstance(told_left, Sum) or right.requires_grad:
        return None
    if isinstance(told_right, Sum):
        denominator = Denominator(right.detach(), quotient=result.detach().clone())
    elif isinstance(told_right, ClampedSum):
        denominator = told_right.denominator
    else:
        return None
    return Mean((denominator,), told_left.constants + told_right.constants, told_left.items + told_right.items)


_SUMS: set[Callable[..., Any]] = {torch.sum, Tensor.sum}
_MEANS: set[Callable[..., Any]] = {torch.mean, Tensor.mean}
_ADDS: set[Callable[..., Any]] = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_,
    torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, Tensor.__isub__, Tensor.sub_,
}  # fmt: skip
_DIVISIONS: set[Callable[..., Any]] = {
    torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__,
}  # fmt: skip
_SCALES: set[Callable[..., Any]] = _DIVISIONS | {
    torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__,
}  # fmt: skip
_CLAMPS: set[Callable[..., Any]] = {
    torch.clamp, torch.clamp_min, torch.clip, Tensor.clamp, Tensor.clamp_min, Tensor.clip,
}  # fmt: skip
_NEGATIONS: set[Callable[..., Any]] = {torch.neg, Tensor.neg, Tensor.__neg__}
_PASSES_ON: set[Callable[..., Any]] = {
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
    Tensor.cpu, Tensor.cuda, Tensor.detach, torch.detach, Tensor.clone, torch.clone, Tensor.contiguous,
    Tensor.squeeze, torch.squeeze, Tensor.view, Tensor.reshape,
}  # fmt: skip
_FRESH: set[Callable[..., Any]] = {Tensor.new_zeros, Tensor.new_ones, torch.zeros_like, torch.ones_like}
