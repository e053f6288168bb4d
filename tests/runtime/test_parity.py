"""A pooled model against the unsharded one, tensor by tensor.

With one micro-batch bytes only move: everything is equal to the bit. With several, sums over the batch are reordered:
fp64 agrees to 1e-12, fp32 to 1e-5, relative to the largest value of the tensor's kind.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Specimen, loss_of

import poolrt
from poolrt.runtime.state.trees import flatten

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
each_specimen = pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
pytestmark = pytest.mark.usefixtures("one_thread")


def train_step(model: nn.Module, batch: dict[str, Any]) -> Any:
    output = model(**batch)
    loss_of(output).backward()
    return output


def pooled(specimen: Specimen, dtype: torch.dtype, cards: int, micro_batches: int) -> tuple[nn.Module, dict[str, Any]]:
    model, batch = specimen.build(dtype)
    topology = poolrt.virtual(cards=cards, memory="256MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", poolrt.SplitWarning)
        return poolrt.shard(
            model, topology=topology, sample=batch, micro_batches=micro_batches, **dict(specimen.options)
        ), batch


def assert_agree(expected: Tensor, actual: Tensor, tolerance: float, scale: float, what: str) -> None:
    assert expected.shape == actual.shape, what
    assert expected.dtype == actual.dtype, what
    if not expected.is_floating_point() or tolerance == 0:
        assert torch.equal(expected, actual.cpu()), what
        return
    if expected.dtype == torch.float32:  # also in a model of fp64: some compute their loss in fp32
        tolerance = max(tolerance, TOLERANCE[torch.float32])
    difference = (expected - actual.cpu()).abs().max().item() if expected.numel() else 0.0
    assert difference <= tolerance * scale, f"{what}: {difference:.3g} over {scale:.3g}"


def assert_outputs_agree(expected: Any, actual: Any, tolerance: float) -> None:
    assert type(expected) is type(actual)
    ours, theirs = flatten(actual, into_state=True), flatten(expected, into_state=True)
    assert [leaf.path for leaf in ours.leaves] == [leaf.path for leaf in theirs.leaves]
    for mine, leaf in zip(ours.leaves, theirs.leaves, strict=True):
        scale = leaf.tensor.abs().max().item() if leaf.tensor.is_floating_point() else 1.0
        assert_agree(leaf.tensor, mine.tensor, tolerance, scale, leaf.path)


def assert_parameters_agree(expected: nn.Module, actual: nn.Module, tolerance: float, *, gradients: bool) -> None:
    pairs = list(zip(expected.named_parameters(), actual.parameters(), strict=True))
    values = [
        (name, p.grad if gradients else p.detach(), q.grad if gradients else q.detach()) for (name, p), q in pairs
    ]
    scale = max(value.abs().max().item() for _, value, _ in values if value is not None)
    for name, theirs, ours in values:
        assert (theirs is None) == (ours is None), name
        if theirs is not None:
            assert_agree(theirs, ours, tolerance, scale, name)


@each_specimen
@pytest.mark.parametrize("cards", [2, 3])
def test_one_micro_batch_is_equal_to_the_bit(specimen: Specimen, cards: int):
    reference, batch = specimen.build(torch.float64)
    model, batch = pooled(specimen, torch.float64, cards, micro_batches=1)
    assert_outputs_agree(train_step(reference, batch), train_step(model, batch), 0)
    assert_parameters_agree(reference, model, 0, gradients=True)


@each_specimen
@pytest.mark.parametrize(("dtype", "cards"), [(torch.float64, 2), (torch.float64, 3), (torch.float32, 2)])
def test_micro_batches_agree_with_the_whole_batch(specimen: Specimen, dtype: torch.dtype, cards: int):
    reference, batch = specimen.build(dtype)
    model, batch = pooled(specimen, dtype, cards, micro_batches=4)  # 6 samples: 2, 2, 1, 1
    assert poolrt.report(model).plan.micro_batches == (1 if specimen.stays_whole else 4)
    assert_outputs_agree(train_step(reference, batch), train_step(model, batch), TOLERANCE[dtype])
    assert_parameters_agree(reference, model, TOLERANCE[dtype], gradients=True)


@each_specimen
def test_parameters_after_two_steps_of_adamw(specimen: Specimen):
    reference, batch = specimen.build(torch.float64)
    model, batch = pooled(specimen, torch.float64, cards=2, micro_batches=4)
    for each in (reference, model):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            train_step(each, batch)
            optimizer.step()
    # Adam divides by the gradient's size: where that is rounding noise, its direction is noise too. Such entries move
    # by up to the learning rate; all others agree.
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
            continue
        solid = p.grad.abs() > 1e-9
        assert torch.allclose(p[solid], q.detach().cpu()[solid], rtol=1e-6, atol=1e-9), name


@each_specimen
def test_the_object_stays_the_users(specimen: Specimen):
    model, batch = specimen.build(torch.float32)
    original, before = model, {name: id(p) for name, p in model.named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    values = copy.deepcopy(model.state_dict())
    topology = poolrt.virtual(cards=2, memory="256MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", poolrt.SplitWarning)
        model = poolrt.shard(model, topology=topology, sample=batch, **dict(specimen.options))
    assert model is original
    assert type(model) is type(specimen.build(torch.float32)[0])
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), values[name]), f"{name} was changed by sharding"
    used = {p.device for p in model.parameters()}
    assert used == {torch.device("vcard:0"), torch.device("vcard:1")}, "the weights are spread over both cards"


def test_a_stored_state_goes_back_into_an_unsharded_model(tmp_path):
    specimen = next(s for s in ZOO if s.name == "tied")
    model, batch = pooled(specimen, torch.float64, cards=2, micro_batches=2)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh, _ = specimen.build(torch.float64)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu"))
    assert torch.equal(loss_of(fresh(**batch)), loss_of(specimen.build(torch.float64)[0](**batch)))
