"""The same promises on a CUDA GPU cut into logical cards: run by `make gpu-check`, passed over without a GPU."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import poolrt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CARDS = [1, 2, 4]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(500, (8, 32), device="cuda:0")
    return {"input_ids": tokens, "labels": tokens.clone()}


def make_bert(dropout: float = 0.0) -> BertForMaskedLM:
    config = BertConfig(
        attn_implementation="eager",  # fused attention adds up in any order in backward
        vocab_size=500,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMaskedLM(config).to("cuda:0")


def gradients_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def pooled(model: BertForMaskedLM, batch: dict[str, torch.Tensor], cards: int, **options) -> torch.nn.Module:
    topology = poolrt.logical("cuda:0", cards=cards, memory="2GiB")
    return poolrt.shard(copy.deepcopy(model), sample=batch, topology=topology, **options)


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_every_gradient_agrees_with_the_unsharded_model(batch, cards: int, micro_batches: int) -> None:
    model = make_bert().double()
    expected = gradients_of(model, batch)
    found = gradients_of(pooled(model, batch, cards, micro_batches=micro_batches), batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12 * float(gradient.abs().max()))


def test_two_steps_of_adamw_give_the_same_parameters(batch) -> None:
    model = make_bert().double()
    sharded = pooled(model, batch, 2, micro_batches=2)
    for trained in (model, sharded):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        for _ in range(2):
            trained(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(sharded.state_dict()[name], value, rtol=1e-8, atol=1e-10)


def test_same_seed_and_plan_give_the_same_bits_with_dropout(batch) -> None:
    model = pooled(make_bert(dropout=0.1), batch, 2, micro_batches=4)
    runs = []
    for _ in range(10):
        torch.manual_seed(5)
        runs.append(gradients_of(model, batch))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in runs[0])


def test_mixed_precision_reaches_the_lanes(batch) -> None:
    model = make_bert()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = model(**batch).logits
        found = pooled(model, batch, 2, micro_batches=2)(**batch).logits
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_memory_comes_back_when_the_model_goes(batch) -> None:
    before = torch.cuda.memory_allocated()
    model = pooled(make_bert(), batch, 2)
    gradients_of(model, batch)
    del model
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


class Slow(torch.nn.Module):
    """A linear layer whose kernels begin some 10 ms late: who does not wait for its stream reads what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(256, 256)
        self.streams: set[torch.cuda.Stream] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.streams.add(torch.cuda.current_stream())
        torch.cuda._sleep(20_000_000)
        return self.linear(x)


def test_shares_work_in_streams_of_their_own_and_wait_for_each_other() -> None:
    plain = torch.nn.Sequential(*(Slow() for _ in range(4))).to("cuda:0").double()
    topology = poolrt.logical("cuda:0", cards=2, memory="1GiB")
    x = torch.randn(64, 256, device="cuda:0", dtype=torch.float64)
    sharded = poolrt.shard(copy.deepcopy(plain), sample=x, topology=topology, micro_batches=2)
    for layer in sharded:
        layer.streams.clear()
    for model in (plain, sharded):
        for _ in range(3):
            model.zero_grad()
            output = model(x)
            output.square().sum().backward()
    torch.testing.assert_close(output, plain(x), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    assert sharded[0].streams.isdisjoint(sharded[3].streams)
    assert torch.cuda.default_stream() not in sharded[0].streams | sharded[3].streams
