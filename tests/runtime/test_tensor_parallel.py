"""Models whose layers are split over all cards against ordinary ones: three steps of AdamW, outputs, state, generation.

fp64 agrees to 1e-12, models that compute parts in fp32 whatever their dtype to 1e-6, relative to the largest value.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

import poolrt
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.state.trees import flatten
from poolrt.topology.topology import Topology

Batch = dict[str, Any]
pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"bert": 1e-12, "gpt2": 1e-6, "llama": 1e-6}
"""gpt2 and llama compute their softmax or their loss in fp32"""
each_model = pytest.mark.parametrize("name", TOLERANCE)


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Batch]:
    return next(specimen for specimen in zoo.ZOO if specimen.name == name).build(dtype)


def cards(count: int, memory: str = "64MiB") -> Topology:
    return poolrt.virtual(cards=count, memory=memory)


def split(model: nn.Module, batch: Batch, topology: Topology, **options: Any) -> nn.Module:
    return poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=len(topology), **options)


def three_steps(model: nn.Module, batch: Batch) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_near(expected: Tensor, actual: Tensor, tolerance: float, what: str) -> None:
    assert expected.shape == actual.shape, what
    difference = (expected - actual.detach().cpu()).abs().max().item()
    assert difference <= tolerance * expected.abs().max().item(), f"{what}: {difference:.3g}"


@each_model
@pytest.mark.parametrize("count", [2, 3, 4])
def test_three_steps_are_those_of_one_card(name: str, count: int):
    (reference, batch), (model, _) = built(name), built(name)
    split(model, batch, cards(count))
    for expected, actual in zip(three_steps(reference, batch), three_steps(model, batch), strict=True):
        assert_near(expected, actual, TOLERANCE[name], "loss")
    for (path, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is rounding noise, its direction is noise too.
        solid = p.grad.abs() > 1e3 * TOLERANCE[name]
        assert torch.allclose(p[solid], q.detach().cpu()[solid], rtol=1e-6, atol=TOLERANCE[name]), path


@each_model
def test_outputs_and_gradients_are_those_of_one_card(name: str):
    (reference, batch), (model, _) = built(name), built(name)
    split(model, batch, cards(2))
    expected, actual = reference(**batch), model(**batch)
    assert type(expected) is type(actual)
    assert_near(expected.logits, actual.logits, TOLERANCE[name], "logits")
    assert actual.logits.device.type == "cpu", "outputs come back to where the batch came from"
    expected.loss.backward(), actual.loss.backward()
    scale = max(p.grad.abs().max().item() for p in reference.parameters())
    for (path, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert (p.grad - q.grad.cpu()).abs().max().item() <= TOLERANCE[name] * scale, path


@each_model
def test_the_object_stays_the_users(name: str):
    model, batch = built(name)
    original, before = model, {path: id(p) for path, p in model.named_parameters()}
    values = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    split(model, batch, cards(2))
    assert model is original
    assert torch.equal(torch.get_rng_state(), generator)
    assert {path: id(p) for path, p in model.named_parameters()} == before
    assert list(model.state_dict()) == list(values)
    for path, value in model.state_dict().items():
        assert torch.equal(value.cpu(), values[path]), f"{path} was changed"
    spread = [p for p in model.parameters() if isinstance(p, ShardedParameter)]
    assert sum(p.numel() for p in spread) >= 0.9 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("samples", [1, 2])
def test_one_sample_trains_and_an_optimizer_made_before_keeps_its_state(samples: int):
    (reference, batch), (model, _) = built("bert"), built("bert")
    batch = {key: value[:samples] for key, value in batch.items()}
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (reference, model)]
    for step in range(3):
        if step == 1:
            split(model, batch, cards(2))
        for each, optimizer in zip((reference, model), optimizers, strict=True):
            optimizer.zero_grad()
            each(**batch).loss.backward()
            optimizer.step()
    assert_near(reference(**batch).loss, model(**batch).loss, 1e-9, "loss")


def test_without_a_sample_the_first_batch_splits():
    (reference, batch), (model, _) = built("bert"), built("bert")
    poolrt.shard(model, topology=cards(2), tensor_parallel=2)
    with pytest.raises(poolrt.errors.ModelError):
        poolrt.report(model)
    with torch.inference_mode():
        assert_near(reference(**batch).loss, model(**batch).loss, 1e-12, "loss")
    for expected, actual in zip(three_steps(reference, batch), three_steps(model, batch), strict=True):
        assert_near(expected, actual, 1e-12, "loss")


def test_state_goes_both_ways(tmp_path):
    model, batch = built("llama")
    expected = model(**batch).loss.detach()
    split(model, batch, cards(3))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    changed = model(**batch).loss
    model.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu"))
    assert_near(expected, model(**batch).loss, 1e-6, "loss of the split model")
    assert abs(changed - expected) > 1e-3
    fresh, _ = built("llama")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu"))
    assert torch.equal(fresh(**batch).loss, expected)


def test_copies_are_split_too_and_pickles_are_whole():
    model, batch = built("bert")
    expected = model(**batch).loss.detach()
    split(model, batch, cards(2))
    twin = copy.deepcopy(model)
    assert poolrt.report(twin).plan == poolrt.report(model).plan
    assert_near(expected, twin(**batch).loss, 1e-12, "loss of the copy")
    assert_near(expected, model(**batch).loss, 1e-12, "loss of the original")
    plain = pickle.loads(pickle.dumps(model))
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in plain.parameters())
    assert torch.equal(plain(**batch).loss, expected)


def test_another_dtype_has_the_pieces_follow():
    model, batch = built("llama")
    split(model, batch, cards(2))
    model.float()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_near(built("llama", torch.float32)[0](**batch).loss, model(**batch).loss, 1e-5, "loss")


# ---- generation


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}], ids=["cache", "no cache", "beams"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_gives_the_tokens_of_one_card(name: str, options: dict[str, Any]):
    (reference, batch), (model, _) = built(name), built(name)
    split(model, batch, cards(2))
    prompt = batch["input_ids"][:2, :5]
    told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    expected = reference.eval().generate(prompt, **told)
    assert torch.equal(model.eval().generate(prompt, **told).cpu(), expected)


# ---- recompute


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_gradients_without_them(reentrant: bool):
    (reference, batch), (model, _) = built("gpt2"), built("gpt2")
    split(model, batch, cards(2))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for each in (reference, model):
        each(**batch).loss.backward()
    for (path, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert_near(p.grad, q.grad, 1e-5, path)


# ---- one layer larger than a card


class Wide(nn.Module):
    """One linear layer, and a small one behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(64, width, bias=False)
        self.narrow = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.wide(x)).unflatten(-1, (-1, 64)).mean(-2)).square().mean()


def wide(cards_count: int, optimizer: str, mebibytes: int) -> tuple[Wide, Wide, Tensor]:
    """(ordinary, split over cards of 8 MiB, a batch): the wide layer's weight has so many MiB."""
    torch.manual_seed(0)
    model, x = Wide(mebibytes * 4096), torch.randn(2, 64)
    reference = copy.deepcopy(model)
    topology = cards(cards_count, "8MiB")
    poolrt.shard(model, topology=topology, sample=x, tensor_parallel=cards_count, optimizer=optimizer)
    return reference, model, x


def test_a_linear_layer_larger_than_a_card_runs_on_two():
    reference, model, x = wide(2, "none", 12)
    assert model.wide.weight.nbytes == 1.5 * 8 * 2**20
    with torch.no_grad():
        assert torch.allclose(model(x), reference(x), rtol=1e-5)


@pytest.mark.parametrize(("count", "mebibytes"), [(2, 6), (4, 12), (2, 12)])
def test_a_linear_layer_larger_than_a_card_trains(count: int, mebibytes: int):
    """Weight and gradient are 1.5 cards on two cards; the weight alone is on four, and on two, where the host helps."""
    reference, model, x = wide(count, "sgd", mebibytes)
    assert poolrt.report(model).plan.spills == (count == 2 and mebibytes == 12)
    for each in (reference, model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            each(x).backward()
            optimizer.step()
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        assert torch.allclose(p, q.detach().cpu(), rtol=1e-5, atol=1e-7)


def test_a_copy_of_what_is_spilled_is_spilled_too():
    reference, model, x = wide(2, "sgd", 12)
    before = [torch.vcard.memory_allocated(card) for card in range(2)]
    twin = copy.deepcopy(model)
    grown = sum(torch.vcard.memory_allocated(card) - nbytes for card, nbytes in enumerate(before))
    assert grown < 4 * 2**20, "the weight of 12 MiB is not on the cards"
    twin(x).backward()
    twin.zero_grad()
    assert torch.allclose(twin(x), reference(x), rtol=1e-5)
    assert all(p.grad is None for p in model.parameters())


# ---- what is refused


def test_what_cannot_be_split_is_refused_with_what_to_do():
    model, batch = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)), torch.randn(3, 4)
    with pytest.raises(poolrt.errors.ModelError, match="Leave tensor_parallel out"):
        poolrt.shard(model, topology=cards(2), sample=batch, tensor_parallel=2)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def refused(topology: Topology, **options: Any) -> Callable[[], None]:
    model, batch = built("bert")
    with pytest.raises(poolrt.errors.ConfigurationError) as caught:
        poolrt.shard(model, topology=topology, sample=batch, **options)
    return caught.value


def test_wrong_numbers_of_cards_and_what_does_not_go_together():
    assert "there is 1" in str(refused(cards(1), tensor_parallel=2))
    assert "tensor_parallel=3" in str(refused(cards(3), tensor_parallel=2))
    assert "[[0, 1], [2, 3]]" in str(refused(cards(4), tensor_parallel=3))
    for stages in ([[0, 1], [1, 2]], [[0, 1], []], [[0, 4]], []):
        assert "[[0, 1], [2, 3]]" in str(refused(cards(4), tensor_parallel=stages))
    assert "not 'all'" in str(refused(cards(2), tensor_parallel="all"))


def test_sharding_twice_is_refused():
    model, batch = built("bert")
    split(model, batch, cards(2))
    with pytest.raises(poolrt.errors.ModelError, match="sharded already"):
        split(model, batch, cards(2))


def test_cards_that_are_too_small_leave_the_model_as_it_was():
    model, batch = built("bert")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(poolrt.errors.InfeasibleError, match="too little"):
        poolrt.shard(model, topology=cards(2, "1MiB"), sample=batch, tensor_parallel=2, spill="never")
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())
    assert_near(built("bert")[0](**batch).loss, model(**batch).loss, 0.0, "loss")


def test_memory_that_ends_while_placing_leaves_the_model_as_it_was():
    model, batch = built("bert")
    topology = cards(2, "2MiB")
    plan = poolrt.plan(model, batch, topology, tensor_parallel=2)
    assert plan.feasible
    in_use = torch.empty(2**21 - 2**17, dtype=torch.uint8, device="vcard:1")
    with pytest.raises(poolrt.OutOfMemoryError, match="card 1") as caught:
        poolrt.shard(model, topology=topology, sample=batch, plan=plan)
    assert (caught.value.card, caught.value.weights_nbytes) == (1, 0), "nothing of the model is on it any more"
    assert caught.value.other_nbytes == in_use.nbytes
    del in_use
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in model.parameters())
    poolrt.shard(model, topology=topology, sample=batch, plan=plan)
    assert poolrt.report(model).plan == plan


# ---- proof on the user's own model


def test_verify_compares_every_output_and_gradient():
    _, batch = built("bert")
    found = poolrt.verify(lambda: built("bert")[0], batch, topology=cards(2), tensor_parallel=2)
    assert found.ok, str(found)
    assert found.plan.tensor_parallel == 2
    assert sum(each.kind == "gradient" for each in found.comparisons) > 50


def test_dropout_inside_split_layers_is_told():
    model = zoo.bert(2, attention_probs_dropout_prob=0.1)
    _, batch = built("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(model, batch, cards(2))
    assert any("dropout" in note for note in poolrt.report(model).plan.notes)
    plain, _ = built("bert")
    split(plain, batch, cards(2))
    assert not any("dropout" in note for note in poolrt.report(plain).plan.notes)
    assert len(flatten(plain(**batch)).leaves) == 2
