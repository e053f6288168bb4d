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
from poolrt.runtime.sharded.parameter import ShardedParameter
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


def train(model: nn.Module, batch: Batch, steps: int = 3) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@each_model
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_two_stages_of_two_cards_train_as_one_card_does(name: str, micro_batches: int):
    (reference, batch), (model, _) = built(name), built(name)
    hybrid(model, batch, micro_batches=micro_batches)
    plan = poolrt.report(model).plan
    assert (plan.stages, plan.micro_batches, plan.tensor_parallel) == (((0, 1), (2, 3)), micro_batches, 2)
    tolerance = TOLERANCE[name]
    expected, actual = reference(**batch), model(**batch)
    assert type(expected) is type(actual)
    assert_near(expected.loss, actual.loss, tolerance, "loss")
    assert_near(expected.logits, actual.logits, tolerance, "logits")
    expected.loss.backward(), actual.loss.backward()
    assert_gradients_agree(reference, model, tolerance)
    for before, after in zip(train(reference, batch), train(model, batch), strict=True):
        assert_near(before, after, max(tolerance, 1e-9), "loss")  # Adam makes much of gradients that are rounding noise
    for (path, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        solid = p.grad.abs() > 1e3 * tolerance
        assert torch.allclose(p[solid], q.detach().cpu()[solid], rtol=1e-6, atol=tolerance), path


@pytest.mark.parametrize("stages", [[[0], [1, 2]], [[1, 0], [2]], [[0, 1, 2]], [[3, 1]]], ids=str)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_stages_of_any_cards(name: str, stages: list[list[int]]):
    """GPT2's head is its embedding: where the last stage cannot use its pieces, the whole is copied there."""
    (reference, batch), (model, _) = built(name), built(name)
    hybrid(model, batch, stages, micro_batches=2)
    plan = poolrt.report(model).plan
    assert plan.stages == tuple(map(tuple, stages))
    assert plan.micro_batches == 2
    for each in (reference, model):
        each(**batch).loss.backward()
    assert_gradients_agree(reference, model, TOLERANCE[name])
    in_pieces = [p for p in model.parameters() if isinstance(p, ShardedParameter)]
    assert in_pieces
    assert all(isinstance(p.grad, type(p.detach())) for p in in_pieces), "no card has held a whole gradient"
    used = {piece.device.index for p in in_pieces for piece in p.pieces}
    assert used == {card for stage in stages if len(stage) > 1 for card in stage}


def test_every_layer_is_with_its_stage_and_the_rest_on_its_lead():
    model, batch = built("bert")
    hybrid(model, batch)
    for path, parameter in model.named_parameters():
        layer = int(path.split(".")[3]) if ".layer." in path else None
        on = {piece.device.index for piece in parameter.pieces} if isinstance(parameter, ShardedParameter) else None
        if layer is not None and path.endswith("self.query.weight"):
            assert on == ({0, 1} if layer < 2 else {2, 3}), path
        if "LayerNorm" in path:
            assert parameter.device.index in (0, 2), path


def test_a_card_in_no_stage_is_told():
    model, batch = built("bert")
    poolrt.shard(model, topology=cards(3), sample=batch, tensor_parallel=[[0, 1]])
    plan = poolrt.report(model).plan
    assert plan.cards[2].layers == ()
    assert any("ard 2" in note for note in plan.notes)


@pytest.mark.parametrize("wanted", [2, 4])
def test_a_number_makes_equal_stages(wanted: int):
    model, batch = built("bert")
    plan = poolrt.plan(model, batch, cards(4), tensor_parallel=wanted)
    assert plan.stages == {2: ((0, 1), (2, 3)), 4: ((0, 1, 2, 3),)}[wanted]
    assert plan.feasible
    assert plan.split_modules


def test_the_same_seed_gives_the_same_bits():
    model, batch = zoo.bert(4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), built("bert")[1]
    hybrid(model, batch, micro_batches=3)
    seen = []
    for seed in (*[5] * 10, 6):
        torch.manual_seed(seed)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        seen.append([output.loss.detach(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    for again in seen[1:10]:
        assert all(map(torch.equal, seen[0], again))
    assert not torch.equal(seen[0][0], seen[10][0])
