"""Checkpoints with dropout inside split layers: what runs again drops the same entries, on every card.

    forward     card 0: mask A   card 1: mask B         B comes from card 1's generator,
    recompute   card 0: mask A   card 1: mask B         which torch's checkpoint does not put back

Gradients are compared bit by bit with those of the same model without checkpoints, from the same seed. Backward runs
with one thread per card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import poolrt

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
Gradients = dict[str, Tensor]


def bert(**options: Any) -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **options))


def gpt2(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 16, "n_inner": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))


def llama(**options: Any) -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, attention_dropout=0.1, **options)
    return transformers.LlamaForCausalLM(config)


def text() -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (2, 8))
    return {"input_ids": ids, "labels": ids.clone()}


def split(model: nn.Module, sample: Any, count: int = 2) -> nn.Module:
    topology = poolrt.virtual(cards=count, memory="64MiB")
    return poolrt.shard(model.train(), topology=topology, sample=sample, tensor_parallel=count)


def gradients(model: nn.Module, loss: Callable[[], Tensor], seed: int = 7) -> Gradients:
    model.zero_grad()
    torch.manual_seed(seed)
    loss().backward()
    return {name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_bits(expected: Gradients, actual: Gradients) -> None:
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


# ---- models of transformers


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_gradient_checkpointing_of_transformers(make: Callable[..., nn.Module], attention: str, count: int):
    torch.manual_seed(0)
    model, batch = make(attn_implementation=attention), text()
    split(model, batch, count)

    def loss() -> Tensor:
        return model(**batch).loss

    expected = gradients(model, loss)
    other = gradients(model, loss, seed=8)
    assert any(not torch.equal(expected[name], other[name]) for name in expected), "another seed drops other entries"
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_same_bits(expected, gradients(model, loss))
