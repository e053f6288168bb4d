"""Random losses: what the check lets through on one batch must merge exactly, or be refused, on every other batch.

first batch    whole against parts: same story, same value     -> splitting is allowed
other batches  uneven parts, ragged masks, ignored labels      -> value and gradients of the whole, or CannotMergeError
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from poolrt.runtime.batches.closeness import is_close
from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.batches.merge_weights import CannotMergeError, stories_agree
from poolrt.runtime.batches.microbatch import Gathered, OutputRule, gather, split_gradient
from poolrt.runtime.lanes.crossing import Crossings
from poolrt.runtime.lanes.glue import Glue
from poolrt.runtime.state.trees import Leaf, Tree

Batch = tuple[Tensor, Tensor, Tensor]
"""x (samples, 4), labels y (samples), mask m (samples)"""

VECTORS = (
    "x.pow(2).mean(-1)",
    "x.sum(-1)",
    "m",
    "x.pow(2).mean(-1) * m",
    "x.mean(0)",
    "m.sum(0, keepdim=True)",
    "(x * m[:, None]).sum(0) / m.sum()",
    "(x * m[:, None]).sum(0) / m.sum(0)",
    "x[m > 0].pow(2).mean(-1)",
    "w * w",
    "torch.sigmoid(x @ w)",
    "F.cross_entropy(x, y, reduction='none')",
)
SCALARS = (
    "F.cross_entropy(x, y)",
    "F.cross_entropy(x, y, reduction='sum')",
    "F.mse_loss(x, x * 0)",
    "(m > 0).sum()",
    "scale",
    "zero",
    "len(x)",
    "m.sum().item()",
    "0.5",
)
reduced = st.builds("({}).{}()".format, st.sampled_from(VECTORS), st.sampled_from(("mean", "sum")))


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("({} + zero).clamp(min={})".format, inner, st.sampled_from(("1", "0.5", "1e-6"))),
        st.builds("-{}".format, inner),
    )


losses = st.recursive(reduced | st.sampled_from(SCALARS), combined, max_leaves=4)


def evaluate(loss: str, batch: Batch, weights: list[Tensor]) -> Tensor:
    x, y, m = batch
    zero = torch.zeros((), dtype=torch.float64)
    names = {"zero": zero, "x": x, "y": y, "m": m, "w": weights[0], "scale": weights[1], "F": F, "torch": torch}
    value = eval(loss, names)
    return value.double() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def make_batch(rows: int, ragged: bool, seed: int) -> Batch:
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, dtype=torch.float64, generator=dice)
    y = torch.randint(0, 4, (rows,), generator=dice)
    m = torch.ones(rows, dtype=torch.float64)
    if ragged:
        m = torch.rand(rows, dtype=torch.float64, generator=dice)
        m[torch.rand(rows, generator=dice) < 0.5] = 0
        y[torch.rand(rows, generator=dice) < 0.4] = -100
    return x, y, m


def run_parts(loss: str, batch: Batch, parts: int, weights: list[Tensor]) -> list[Tensor]:
    results = []
    for row in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
        with Glue(Crossings(), lambda: None):
            results.append(evaluate(loss, row, weights))
    return results


def merge(parts: list[Tensor]) -> Gathered:
    return gather([Tree((Leaf("loss", part),), next, False) for part in parts], [OutputRule("scalar")], None)


def is_let_through(loss: str, batch: Batch, weights: list[Tensor]) -> bool:
    with torch.no_grad():
        with Glue(Crossings(), lambda: None):
            whole = evaluate(loss, batch, weights)
        parts = run_parts(loss, batch, 4, weights)
        rules = [rule_of(part) for part in parts]
        if rule_of(whole) is None or not stories_agree(rule_of(whole), rules):
            return False
        try:
            return is_close(merge(parts).tensors[0], whole)
        except CannotMergeError:
            return False


@settings(
    max_examples=40, database=None, suppress_health_check=[HealthCheck.filter_too_much]
)  # most losses are refused, and rightly
@given(
    loss=losses, ragged_first=st.booleans(), rows=st.integers(4, 9), parts=st.integers(2, 4), seed=st.integers(0, 999)
)
def test_what_is_let_through_is_exact(loss: str, ragged_first: bool, rows: int, parts: int, seed: int) -> None:
    weights = [torch.linspace(-1, 1, 4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)]
    try:
        assume(is_let_through(loss, make_batch(8, ragged_first, seed), weights))
    except ZeroDivisionError:
        assume(False)
    batch = make_batch(rows, True, seed + 1)
    leaves = [[t.clone().requires_grad_() for t in (batch[0], *weights)] for _ in range(2)]
    try:
        whole = evaluate(loss, (leaves[0][0], *batch[1:]), leaves[0][1:])
        results = run_parts(loss, (leaves[1][0], *batch[1:]), parts, leaves[1][1:])
        merged = merge(results)
    except (CannotMergeError, ZeroDivisionError):
        return
    assume(whole.isfinite())
    torch.testing.assert_close(merged.tensors[0], whole.detach(), rtol=1e-9, atol=1e-10)
    if not whole.requires_grad:
        return
    whole.backward()
    pieces = split_gradient(torch.ones_like(whole), OutputRule("scalar"), merged.weights[0], results)
    for result, piece in zip(results, pieces, strict=True):
        if piece is not None and result.requires_grad:
            result.backward(piece)
    for one, other in zip(*leaves, strict=True):
        expected, actual = (torch.zeros_like(t) if t.grad is None else t.grad for t in (one, other))
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
