"""Scatter and gather: a batch into micro-batches, and their outputs into the outputs of the whole batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poolrt.planning.profile import micro_batch_sizes
from poolrt.runtime.batches.closeness import is_close
from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.batches.merge_weights import CannotMergeError, merge_weights
from poolrt.runtime.regions.running.parted import Parted
from poolrt.runtime.state.trees import Leaf, Tree, flatten
from poolrt.transfer.copy import carry
from poolrt.transfer.move import move

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class OutputRule:
    """How one output tensor of the whole batch follows from the micro-batches'."""

    kind: Literal["concatenate", "scalar", "same"]
    dim: int = 0


@dataclass(frozen=True)
class Gathered:
    """Whole outputs, and what backward needs to take their gradients apart again."""

    tensors: list[Tensor]
    rules: list[OutputRule]
    weights: list[list[float]]
    """per tensor, the weight of each micro-batch (scalars only)"""


def batch_size_of(call: Call, batch_dim: int) -> int | None:
    """The size most tensors of the call have along `batch_dim`; None if no tensor has that dimension."""
    sizes = Counter(t.shape[batch_dim] for t in flatten(call).tensors if t.dim() > batch_dim)
    return sizes.most_common(1)[0][0] if sizes else None


def is_split(tensor: Tensor, batch_size: int | None, batch_dim: int) -> bool:
    """Whether `scatter` cuts `tensor`: whether it has the batch's size along `batch_dim`."""
    return tensor.dim() > batch_dim and tensor.shape[batch_dim] == batch_size


def scatter(call: Call, micro_batches: int, batch_dim: int) -> list[Call]:
    """`micro_batches` parts of the call; tensors without the batch's size along `batch_dim` go to every part whole."""
    batch_size = batch_size_of(call, batch_dim)
    if micro_batches == 1 or batch_size is None:
        return [call]
    tree = flatten(call)
    sizes = micro_batch_sizes(batch_size, micro_batches)
    columns = [
        t.split(sizes, batch_dim) if is_split(t, batch_size, batch_dim) else [t] * micro_batches for t in tree.tensors
    ]
    if not columns:
        return [call] * micro_batches
    return [tree.rebuild(row) for row in zip(*columns, strict=True)]


def gather(
    parts: Sequence[Tree],
    rules: Sequence[OutputRule],
    device: torch.device | None,
    assembled: Mapping[int, Tensor] | None = None,
) -> Gathered:
    """The whole batch's output tensors, detached; on `device` where one is given (state stays on its cards).

    Args:
        parts: the outputs of each micro-batch.
        rules: how they come together, one per tensor.
        device: where to.
        assembled: by index, tensors that are there already because the lanes put them together.

    Raises:
        CannotMergeError: if the parts do not fit `rules`.
    """
    if any(len(part.leaves) != len(rules) for part in parts):
        raise CannotMergeError(f"the model returned {len(parts[0].leaves)} tensors, in the first step {len(rules)}")
    for part in parts[1:]:
        if (path := parts[0].difference(part)) is not None:
            raise CannotMergeError(f"output {path!r} differs between the micro-batches, and only tensors can be merged")
    tensors, weights = [], []
    for index, rule in enumerate(rules):
        leaves = [part.leaves[index] for part in parts]
        if len(leaves) == 1 and leaves[0].in_state and not leaves[0].tensor.requires_grad:
            tensors.append(leaves[0].tensor)  # the object that holds it stays the very object
            weights.append([1.0])
            continue
        weights.append(_weights(leaves) if rule.kind == "scalar" and len(parts) > 1 else [1.0] * len(parts))
        ready = None if assembled is None else assembled.get(index)
        tensors.append(
            _merged(leaves, rule, weights[-1], None if leaves[0].in_state else device) if ready is None else ready
        )
    return Gathered(tensors, list(rules), weights)


def _merged(leaves: Sequence[Leaf], rule: OutputRule, weights: Sequence[float], device: torch.device | None) -> Tensor:
    parts = [leaf.tensor.detach() for leaf in leaves]
    if rule.kind == "same" and any(not is_close(move(part, parts[0].device), parts[0]) for part in parts[1:]):
        raise CannotMergeError(f"output {leaves[0].path!r} was the same for every micro-batch, and now is not")
    target = parts[-1].device if device is None else device
    if rule.kind == "same" or len(parts) == 1:
        whole = move_output(parts[0], target)
        return whole.clone() if whole is parts[0] and whole.dim() == 0 else whole  # a loss is often changed in place
    if rule.kind == "concatenate":
        return _concatenate(leaves[0].path, parts, rule.dim, target)
    # In fp64, whatever the parts are; a micro-batch in which nothing counts has a loss of 0/0 and no weight.
    counted = [move(part.double(), target) * weight for part, weight in zip(parts, weights, strict=True) if weight]
    return torch.stack(counted or [move(parts[0].double(), target)]).sum().to(parts[0].dtype)


def _concatenate(path: str, parts: Sequence[Tensor], dim: int, device: torch.device) -> Tensor:
    """torch.cat straight into `device`: no second whole copy on the card the parts lie on."""
    shape = list(parts[0].shape)
    if any(part.dim() != len(shape) or _without(part.shape, dim) != _without(shape, dim) for part in parts):
        raise CannotMergeError(f"output {path!r} has shapes {[tuple(p.shape) for p in parts]} over the micro-batches")
    shape[dim] = sum(part.shape[dim] for part in parts)
    whole = torch.empty(shape, dtype=parts[0].dtype, device=device)
    for target, part in zip(whole.split([part.shape[dim] for part in parts], dim), parts, strict=True):
        carry_output(part, target)
    return whole


def move_output(tensor: Tensor, device: torch.device) -> Tensor:
    """An output on `device`; of one in parts every part by itself: the lead card need not hold it whole."""
    if isinstance(tensor, Parted):
        return torch.cat([move(part, device) for part in tensor.parts or (tensor.whole(),)], -1)
    return move(tensor, device)


def carry_output(tensor: Tensor, target: Tensor) -> None:
    """Copy an output into `target`, part by part if it lies in parts."""
    if not isinstance(tensor, Parted):
        carry(tensor, target)
        return
    parts = tensor.parts or (tensor.whole(),)
    for part, place in zip(parts, target.split([part.shape[-1] for part in parts], -1), strict=True):
        carry(part, place)


def _without(shape: Sequence[int], dim: int) -> list[int]:
    return [size for index, size in enumerate(shape) if index != dim]


def _weights(leaves: Sequence[Leaf]) -> list[float]:
    """The weight of each micro-batch in a scalar output.

    Raises:
        CannotMergeError: if it has none, or has no weight and yet a value.
    """
    path = leaves[0].path
    weights = merge_weights(path, [rule_of(leaf.tensor) for leaf in leaves])
    if any(weight == 0 and not leaf.tensor.isnan() for weight, leaf in zip(weights, leaves, strict=True)):
        raise CannotMergeError(f"output {path!r} has a value in a micro-batch in which nothing counts")
    return weights


def split_gradient(
    gradient: Tensor, rule: OutputRule, weights: Sequence[float], parts: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of one whole output as gradients of the micro-batches' outputs, each on its output's device."""
    if rule.kind == "concatenate" and len(parts) > 1:
        pieces = gradient.split([part.shape[rule.dim] for part in parts], rule.dim)
        return [move(piece, part.device) for piece, part in zip(pieces, parts, strict=True)]
    if rule.kind == "scalar" and len(parts) > 1:
        return [move(gradient * w, part.device) if w else None for w, part in zip(weights, parts, strict=True)]
    return [move(gradient, parts[0].device), *[None] * (len(parts) - 1)]
