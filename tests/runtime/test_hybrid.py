"""Stages of several cards against one card: outputs, gradients and three steps of AdamW, in one and several parts.

    stage 0   cards 0 1   embeddings, the first layers          lane 0 |F0      |  ...
    stage 1   cards 2 3   the other layers, head, loss          lane 1    |F1      |

fp64 agrees to 1e-12, models that compute parts in fp32 whatever their dtype to 1e-6, relative to the largest value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

import poolrt
from poolrt.topology.topology import Topology

Batch = dict[str, Any]
pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"bert": 1e-12, "gpt2": 1e-6, "llama": 1e-6, "t5": 1e-6}
"""all but bert compute their softmax, norm or loss in fp32"""
each_model = pytest.mark.parametrize("name", TOLERANCE)
TWO_BY_TWO = [[0, 1], [2, 3]]


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Batch]:
    return next(specimen for specimen in zoo.ZOO if specimen.name == name).build(dtype)


def cards(count: int, memory: Any = "64MiB") -> Topology:
    return poolrt.virtual(cards=count, memory=memory)


def hybrid(model: nn.Module, batch: Batch, stages: Any = TWO_BY_TWO, micro_batches: int = 2) -> nn.Module:
    topology = cards(1 + max(card for stage in stages for card in stage))
    return poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=stages, micro_batches=micro_batches)


def assert_near(expected: Tensor, actual: Tensor, tolerance: float, what: str) -> None:
    assert expected.shape == actual.shape, what
    difference = (expected - actual.detach().cpu()).abs().max().item()
    assert difference <= tolerance * expected.abs().max().item(), f"{what}: {difference:.3g}"


def assert_gradients_agree(reference: nn.Module, model: nn.Module, tolerance: float) -> None:
    scale = max(p.grad.abs().max().item() for p in reference.parameters() if p.grad is not None)
    for (path, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), path
        if p.grad is not None:
            assert (p.grad - q.grad.cpu()).abs().max().item() <= tolerance * scale, path


@each_model
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_one_card(name: str, micro_batches: int):
    (reference, batch), (model, _) = built(name), built(name)
    hybrid(model, batch, micro_batches=micro_batches)
    plan = poolrt.report(model).plan
    assert (plan.stages, plan.micro_batches, plan.tensor_parallel) == (((0, 1), (2, 3)), micro_batches, 2)
    expected, actual = reference(**batch), model(**batch)
    assert type(expected) is type(actual)
    assert_near(expected.loss, actual.loss, TOLERANCE[name], "loss")
    assert_near(expected.logits, actual.logits, TOLERANCE[name], "logits")
    expected.loss.backward(), actual.loss.backward()
    assert_gradients_agree(reference, model, TOLERANCE[name])
