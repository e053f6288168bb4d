"""Bad input: each a clear error, with nothing moved, hooked or changed."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn

import poolrt
from poolrt.errors import ConfigurationError, InfeasibleError, ModelError, PlanError, SampleError
from poolrt.runtime.pooled import pooled_of


@pytest.fixture
def cards() -> poolrt.Topology:
    return poolrt.virtual(cards=2, memory="64MiB")


@pytest.fixture
def model() -> nn.Module:
    return zoo.Tied()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return zoo._tied_batch()


def assert_untouched(model: nn.Module) -> None:
    assert pooled_of(model) is None
    assert "forward" not in vars(model)
    assert {p.device.type for p in model.parameters()} <= {"cpu", "meta"}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_weights_on_meta(cards):
    with torch.device("meta"):
        model = zoo.Tied()
    with pytest.raises(ModelError, match=r"no values.*embedding\.weight.*load or initialise"):
        poolrt.shard(model, topology=cards)
    assert_untouched(model)


def test_no_parameters(cards):
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    with pytest.raises(ModelError, match="Sequential has no parameters"):
        poolrt.shard(model, topology=cards)
    assert_untouched(model)


@pytest.mark.parametrize("sample", [{"input_ids": torch.ones(2, 3), "wrong": 1}, (1, 2, 3, 4), {}])
def test_a_sample_that_does_not_fit_the_signature(cards, model, sample):
    with pytest.raises(SampleError, match=r"Tied\.forward.*input_ids.*labels"):
        poolrt.shard(model, topology=cards, sample=sample)
    assert_untouched(model)


def test_a_sample_that_forward_chokes_on_leaves_the_model_as_it_was(cards, model, batch):
    batch["labels"] = batch["labels"][:2]
    with pytest.raises(ValueError, match="batch_size"):
        poolrt.shard(model, topology=cards, sample=batch)
    assert_untouched(model)


@pytest.mark.parametrize("memory", ["4 apples", "", "GiB", "-1GiB", 0, 1.5])
def test_card_memory_that_is_no_size(memory):
    with pytest.raises(ConfigurationError, match=r"apples|size"):
        poolrt.virtual(cards=2, memory=memory)


@pytest.mark.parametrize("count", [0, 17, -1])
def test_a_number_of_virtual_cards_that_cannot_be(count):
    with pytest.raises(ConfigurationError, match="1 to 16"):
        poolrt.virtual(cards=count, memory="1GiB")


def test_sizes_that_do_not_match_the_number_of_cards():
    with pytest.raises(ConfigurationError, match="2 cards need one memory size or 2, got 3"):
        poolrt.virtual(cards=2, memory=["1GiB", "1GiB", "1GiB"])


def test_a_plan_for_another_model(cards, model, batch):
    plan = poolrt.plan(zoo.Perceptron(), {"x": torch.randn(6, 16)}, cards)
    with pytest.raises(PlanError, match="another model"):
        poolrt.shard(model, topology=cards, plan=plan)
    assert_untouched(model)


def test_a_plan_for_another_topology(cards, model, batch):
    plan = poolrt.plan(model, batch, cards)
    other = poolrt.virtual(cards=3, memory="64MiB")
    with pytest.raises(PlanError, match="another topology"):
        poolrt.shard(model, topology=other, plan=plan)
    assert_untouched(model)


def test_shard_twice(cards, batch):
    model = zoo.Tied()
    poolrt.shard(model, topology=cards, sample=batch)
    with pytest.raises(ModelError, match="sharded already"):
        poolrt.shard(model, topology=cards, sample=batch)
    model(**batch)["loss"].backward()


def test_a_model_too_large_says_what_would_make_it_fit(model, batch):
    cards = poolrt.virtual(cards=2, memory="96KiB")
    with pytest.raises(InfeasibleError, match=r"(?s)card \d.*(memory|batch)"):
        poolrt.shard(model, topology=cards, sample=batch, spill="never")
    assert_untouched(model)


def test_a_batch_smaller_than_the_micro_batches_says_so_and_runs(cards, batch):
    model = zoo.Tied()
    small = {name: value[:2] for name, value in batch.items()}
    expected = model(**small)["loss"]
    poolrt.shard(model, topology=cards, sample=batch, micro_batches=6)
    with pytest.warns(poolrt.SplitWarning, match="batch of 2 cannot be cut into 6 micro-batches"):
        loss = model(**small)["loss"]
    assert torch.allclose(loss, expected, atol=1e-5)


@pytest.mark.parametrize("micro_batches", [0, -2, 1.5, "many"])
def test_micro_batches_that_are_no_number(cards, model, batch, micro_batches):
    with pytest.raises(ConfigurationError, match="micro_batches"):
        poolrt.shard(model, topology=cards, sample=batch, micro_batches=micro_batches)
    assert_untouched(model)


@pytest.mark.parametrize(("option", "value"), [("optimizer", "adamantium"), ("schedule", "dance")])
def test_words_that_planning_does_not_know(cards, model, batch, option, value):
    with pytest.raises(ConfigurationError, match=value):
        poolrt.shard(model, topology=cards, sample=batch, **{option: value})
    assert_untouched(model)


def test_a_report_before_there_is_anything_to_report(model):
    with pytest.raises(ModelError, match="not sharded or has seen no batch"):
        poolrt.report(model)


@pytest.mark.parametrize("text", ["virtual:0x4GiB", "virtual:17x1GiB", "virtual:2x4 apples", "gpu:1", "cuda:"])
def test_a_wrong_environment_variable(monkeypatch, text):
    monkeypatch.setenv("POOLRT_CARDS", text)
    with pytest.raises(ConfigurationError):
        poolrt.discover()


def test_the_environment_variable_chooses_the_cards(monkeypatch):
    monkeypatch.setenv("POOLRT_CARDS", "virtual:3x8MiB")
    topology = poolrt.discover()
    assert [card.device for card in topology.cards] == ["vcard:0", "vcard:1", "vcard:2"]
    assert [card.memory_bytes for card in topology.cards] == [8 << 20] * 3


class Grumpy(nn.Module):
    """Raises for one row of the batch, in the middle of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if (x[:, 0] > 50).any():
            raise ValueError("a bad row")
        return self.second(hidden)


def test_a_forward_that_raises_reaches_the_caller_and_the_next_step_works(cards):
    model, good = Grumpy(), torch.randn(8, 4)
    expected = model(good)
    poolrt.shard(model, topology=cards, sample=(good,), micro_batches=4)
    bad = good.clone()
    bad[5, 0] = 99
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="a bad row"):
        model(bad)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.grad is None for p in model.parameters())
    output = model(good)
    assert torch.allclose(output, expected, atol=1e-6)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class GrumpyBackward(torch.autograd.Function):
    """Raises in backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.angry = bool((x > 50).any())
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.angry:
            raise RuntimeError("a bad gradient")
        return gradient


class GrumpyLater(Grumpy):
    """The same in backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(GrumpyBackward.apply(self.first(x) + x))


def test_a_backward_that_raises_reaches_the_caller_and_leaves_no_gradients(cards):
    model, good = GrumpyLater(), torch.randn(8, 4)
    poolrt.shard(model, topology=cards, sample=(good,), micro_batches=4)
    bad = good.clone()
    bad[5] = 99
    output = model(bad)
    with pytest.raises(RuntimeError, match="a bad gradient"):
        output.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    model(good).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
