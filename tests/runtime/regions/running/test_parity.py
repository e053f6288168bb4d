"""Regions on two virtual cards against the same modules whole: loss, all outputs, the gradient of every parameter.

Three and four cards, and steps of an optimizer, are compared for whole sharded models in test_tensor_parallel_zoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS
from torch import Tensor

from poolrt.runtime.regions.running.parted import brought_together
from poolrt.runtime.state.trees import flatten

pytestmark = pytest.mark.usefixtures("one_thread")

CAUSAL = [name for name, specimen in SPECIMENS.items() if {"use_cache", "input_ids"} <= specimen.batch().keys()]


def objective(outputs: Any) -> Tensor:
    """What backward starts from: the model's own loss, or one in the logits' own precision."""
    loss = outputs.get("loss")
    return brought_together(outputs["logits"]).square().mean() if loss is None else loss


def assert_close(expected: Tensor, actual: Tensor, tolerance: float, scale: float, what: str) -> None:
    assert expected.shape == actual.shape, what
    assert (expected - actual.cpu()).abs().max().item() <= tolerance * scale, what


def assert_outputs_agree(expected: Any, actual: Any, tolerance: float) -> None:
    ours, theirs = flatten(actual), flatten(expected)
    assert [leaf.path for leaf in ours.leaves] == [leaf.path for leaf in theirs.leaves]
    for mine, leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert_close(leaf.tensor, mine.tensor, tolerance, leaf.tensor.abs().max().item(), leaf.path)


@pytest.mark.parametrize("name", SPECIMENS)
def test_split_and_whole_agree(name: str, split: Splitter):
    """Causal models without labels: their own loss takes the logits to fp32."""
    check_parity(name, split, SPECIMENS[name].tolerance, without=("labels",) if name in CAUSAL else ())


@pytest.mark.parametrize("name", CAUSAL)
def test_losses_over_logits_in_parts_agree_as_far_as_fp32_goes(name: str, split: Splitter):
    check_parity(name, split, 1e-6)


def check_parity(name: str, split: Splitter, tolerance: float, without: Sequence[str] = ()) -> None:
    specimen = SPECIMENS[name]
    reference, batch = specimen.build()
    expected = reference(**{key: value for key, value in batch.items() if key not in without})
    objective(expected).backward()

    model, batch = specimen.build()
    made = split(model, {key: value for key, value in batch.items() if key not in without})
    actual = model(**made.batch)
    objective(actual).backward()

    assert_outputs_agree(expected, actual, tolerance)
    gradients = {key: parameter.grad for key, parameter in reference.named_parameters()}
    scale = max(gradient.abs().max().item() for gradient in gradients.values() if gradient is not None)
    for key, parameter in model.named_parameters():
        gradient = made.pieces.gradient(parameter)
        assert (gradient is None) == (gradients[key] is None), key
        if gradient is not None:
            assert_close(gradients[key], gradient, tolerance, scale, key)
    assert made.plan.split_share >= specimen.share, made.plan.explain()
