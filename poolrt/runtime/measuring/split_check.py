"""Whole against split: may this model's batch be cut into micro-batches, and how do the outputs come together?

Both run without gradients and without dropout. Outputs, buffers afterwards, returned caches and generators are
compared; whatever cannot be merged exactly keeps the batch whole, with the reason in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poolrt.runtime.batches.closeness import is_close
from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.batches.merge_weights import CannotMergeError, stories_agree
from poolrt.runtime.batches.microbatch import Call, OutputRule, batch_size_of, gather, scatter
from poolrt.runtime.lanes.machine import Machine
from poolrt.runtime.lanes.orders import Orders
from poolrt.runtime.lanes.step import Step
from poolrt.runtime.state.attribute_watch import attributes_watched
from poolrt.runtime.state.model_state import GeneratorStates, ModelState, state_restored
from poolrt.runtime.state.no_dropout import no_dropout
from poolrt.runtime.state.trees import Leaf, Tree
from poolrt.transfer.move import move


@dataclass(frozen=True)
class Verdict:
    """Whether a batch of this form may be split; `rules` say how outputs merge, `why_not` why it stays whole."""

    rules: tuple[OutputRule, ...] = ()
    why_not: str = ""


def check_split(machine: Machine, call: Call, orders: dict[int, Orders], micro_batches: int, batch_dim: int) -> Verdict:
    """Compare one whole forward with one in `micro_batches` parts; on out-of-memory, with half the batch.

    Args:
        machine: where things are.
        call: the batch, on the first card.
        orders: forward orders by number of micro-batches, for 1, `micro_batches`, and what may be tried instead.
        micro_batches: how many parts.
        batch_dim: along which dimension inputs are split.
    """
    try:
        return _check(machine, call, orders, micro_batches, batch_dim)
    except torch.OutOfMemoryError:
        fewer = min(micro_batches, (batch_size_of(call, batch_dim) or 0) // 2)
        if fewer < 2 or fewer not in orders:
            raise
    half = scatter(call, 2, batch_dim)[0]
    return check_split(machine, half, orders, fewer, batch_dim)


def _check(machine: Machine, call: Call, orders: dict[int, Orders], micro_batches: int, batch_dim: int) -> Verdict:
    model = machine.placement.model
    with state_restored(model, machine.devices), torch.no_grad(), no_dropout(model):
        before, generators = ModelState(model), GeneratorStates(machine.devices)
        with attributes_watched() as attributes:
            whole = _run(machine, [call], orders[1])
        if isinstance(whole, str):  # it may want gradients; if the batch is at fault, its own run will say so
            return Verdict(why_not=f"its forward does not run without gradients: {whole}")
        drawn = GeneratorStates(machine.devices).first_difference(generators)
        if drawn:
            return Verdict(why_not=f"its forward draws random numbers from {drawn} (besides dropout)")
        gone = attributes.gone(model)
        if gone:
            return Verdict(why_not=f"{gone!r} holds a tensor while the forward runs, and the parts share it")
        after_whole = ModelState(model)
        before.restore()
        parts = _run(machine, scatter(call, micro_batches, batch_dim), orders[micro_batches])
        if isinstance(parts, str):
            return Verdict(why_not=f"a part of the batch alone fails: {parts}")
        changed = ModelState(model).changes_since(after_whole)
        if changed:
            return Verdict(
                why_not=f"{changed!r} is changed in forward, and differently by the whole batch than by its parts"
            )
        return _compare(whole[0], parts, batch_dim)


def _run(machine: Machine, parts: Sequence[Call], order: Orders) -> list[Tree] | str:
    """The outputs of the parts, or the first line of the error that one of them raised."""
    watching = replace(machine, watch_all=True)  # shares the set of watched layers, which this run fills
    try:
        return Step(watching, parts, order, {}).run_forward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _compare(whole: Tree, parts: Sequence[Tree], batch_dim: int) -> Verdict:
    if any(len(part.leaves) != len(whole.leaves) for part in parts):
        return Verdict(why_not="the parts return another number of tensors than the whole batch")
    for part in parts:
        if (path := whole.difference(part)) is not None:
            return Verdict(why_not=f"output {path!r} is no tensor, and differs between the whole batch and its parts")
    rules = []
    for index, leaf in enumerate(whole.leaves):
        rule = _find_rule(leaf, [part.leaves[index] for part in parts], batch_dim)
        if isinstance(rule, str):
            return Verdict(why_not=rule)
        rules.append(rule)
    return Verdict(rules=tuple(rules))


def _find_rule(whole: Leaf, parts: Sequence[Leaf], batch_dim: int) -> OutputRule | str:
    """The rule that gives the whole's tensor from the parts', or a sentence why there is none."""
    if whole.tensor.dim() == 0 and any(rule_of(leaf.tensor) is not None for leaf in (whole, *parts)):
        if not stories_agree(rule_of(whole.tensor), [rule_of(leaf.tensor) for leaf in parts]):
            return (
                f"output {whole.path!r} is made otherwise from the whole batch than from its parts (other counts, say)"
            )
        return _try(OutputRule("scalar"), whole, parts)
    tensors = [leaf.tensor for leaf in parts]
    dims = [d for d in range(whole.tensor.dim()) if _adds_up(whole.tensor, tensors, d)]
    for dim in sorted(dims, key=lambda d: d != batch_dim):
        if not isinstance(_try(OutputRule("concatenate", dim), whole, parts), str):
            return OutputRule("concatenate", dim)
    if all(t.shape == whole.tensor.shape and is_close(move(t, whole.tensor.device), whole.tensor) for t in tensors):
        return OutputRule("same")
    if dims:
        return _try(OutputRule("concatenate", dims[0]), whole, parts)
    return (
        f"output {whole.path!r} has shape {tuple(whole.tensor.shape)} for the whole batch and "
        f"{[tuple(t.shape) for t in tensors]} for its parts, so it is not a value per sample"
    )


def _try(rule: OutputRule, whole: Leaf, parts: Sequence[Leaf]) -> OutputRule | str:
    trees = [Tree((leaf,), next, False) for leaf in parts]
    try:
        (merged,) = gather(trees, [rule], whole.tensor.device).tensors
    except CannotMergeError as error:
        return str(error)
    if is_close(merged, whole.tensor):
        return rule
    return (
        f"output {whole.path!r} of the whole batch differs from what its parts give {_difference(merged, whole.tensor)}"
    )


def _adds_up(whole: Tensor, parts: Sequence[Tensor], dim: int) -> bool:
    def others(tensor: Tensor) -> list[int]:
        return [size for d, size in enumerate(tensor.shape) if d != dim]

    return (
        all(part.dim() == whole.dim() and others(part) == others(whole) for part in parts)
        and sum(part.shape[dim] for part in parts) == whole.shape[dim]
    )


def _difference(a: Tensor, b: Tensor) -> str:
    if a.dim() == 0:
        return f"({float(b):.6g} against {float(a):.6g})"
    if not a.is_floating_point():
        return "(they are whole numbers or flags)"
    return f"(by {float((a - b).abs().nan_to_num().max()):.2g})"
