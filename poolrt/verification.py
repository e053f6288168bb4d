"""Proof on the user's own model: one step sharded against one step unsharded, tensor by tensor."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from poolrt.errors import SampleError
from poolrt.planning.plan import Plan
from poolrt.runtime.batches.batch_form import call_of
from poolrt.runtime.batches.microbatch import Call
from poolrt.runtime.state.no_dropout import no_dropout
from poolrt.runtime.state.trees import Leaf, flatten

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""largest difference relative to the largest value of the same kind, where sums are reordered"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One tensor of the unsharded run beside the same tensor of the sharded run."""

    kind: str
    """output or gradient"""
    name: str
    largest_difference: float
    """absolute; infinite if shapes differ or only one run has the tensor"""
    tolerance: float
    """absolute; 0 for whole numbers and flags"""
    equal: bool
    """to the bit"""

    @property
    def ok(self) -> bool:
        """Within tolerance."""
        return self.largest_difference <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All tensors of one step; `ok` if every one is within its tolerance."""

    comparisons: tuple[Comparison, ...]
    plan: Plan

    @property
    def ok(self) -> bool:
        """Whether the sharded run may stand for the unsharded one."""
        return all(comparison.ok for comparison in self.comparisons)

    def __str__(self) -> str:
        bad = [comparison for comparison in self.comparisons if not comparison.ok]
        equal = sum(comparison.equal for comparison in self.comparisons)
        text = io.StringIO()
        console = Console(file=text, width=110)
        console.print(
            f"{len(self.comparisons)} tensors compared, {equal} equal to the bit, {len(bad)} out of tolerance "
            f"({len(self.plan.cards)} cards, {self.plan.micro_batches} micro-batches)"
        )
        if bad:
            table = Table("kind", "tensor", "largest difference", "tolerance")
            for comparison in bad:
                table.add_row(
                    comparison.kind,
                    comparison.name,
                    f"{comparison.largest_difference:.3g}",
                    f"{comparison.tolerance:.3g}",
                )
            console.print(table)
        return text.getvalue().rstrip()


def verify_step(
    model_fn: Callable[[], nn.Module],
    sample: Any,
    shard: Callable[[nn.Module], nn.Module],
    plan_of: Callable[..., Plan],
) -> Verification:
    """Run one step of the model as it is and one sharded, dropout off in both, and compare.

    Args:
        model_fn: makes the model; called once.
        sample: one batch.
        shard: shards a model.
        plan_of: the plan of a sharded model.
    """
    call = call_of(sample)
    plain = model_fn()
    sharded = shard(copy.deepcopy(plain))
    expected, theirs = _step(plain, call)
    actual, ours = _step(sharded, call)
    comparisons = [*_compare("output", expected, actual), *_compare("gradient", theirs, ours)]
    return Verification(comparisons=tuple(comparisons), plan=plan_of(sharded))


def _step(model: nn.Module, call: Call) -> tuple[list[Leaf], list[Leaf]]:
    """Outputs and gradients of one forward and backward."""
    with no_dropout(model):
        output = flatten(model(*call[0], **call[1]), into_state=True)
        _loss(output.leaves).backward()
    gradients = [Leaf(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return [Leaf(leaf.path, leaf.tensor.detach()) for leaf in output.leaves], gradients


def _loss(leaves: Sequence[Leaf]) -> Tensor:
    """The model's own loss, its first scalar; else the mean square of its first output that can learn."""
    learning = [leaf.tensor for leaf in leaves if leaf.tensor.requires_grad]
    if not learning:
        raise SampleError("no output of the model depends on a trainable parameter: there is no gradient to compare")
    return next((t for t in learning if t.dim() == 0), learning[0].float().square().mean())


def _compare(kind: str, expected: Sequence[Leaf], actual: Sequence[Leaf]) -> Iterator[Comparison]:
    found = {leaf.path: leaf.tensor for leaf in actual}
    scales = [leaf.tensor.abs().max().item() for leaf in expected if leaf.tensor.is_floating_point()]
    for leaf in expected:
        # Gradients share one scale: those that are zero but for rounding have none of their own.
        scale = max(scales) if kind == "gradient" else float(leaf.tensor.abs().max()) if leaf.tensor.numel() else 0.0
        yield _compared(kind, leaf, found.pop(leaf.path, None), scale)
    for name in found:
        yield Comparison(kind=kind, name=name, largest_difference=float("inf"), tolerance=0.0, equal=False)


def _compared(kind: str, leaf: Leaf, actual: Tensor | None, scale: float) -> Comparison:
    expected, difference, equal = leaf.tensor, float("inf"), False
    if actual is not None and actual.shape == expected.shape and actual.dtype == expected.dtype:
        ours = actual.to(expected.device)
        equal = torch.equal(ours, expected)
        difference = 0.0 if equal else float((ours.double() - expected.double()).abs().max())
    tolerance = TOLERANCE.get(expected.dtype, 0.0) * scale
    return Comparison(kind=kind, name=leaf.path, largest_difference=difference, tolerance=tolerance, equal=equal)
