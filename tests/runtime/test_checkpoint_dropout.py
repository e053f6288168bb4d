"""Checkpoints with dropout inside split layers: what runs again drops the same entries, on every card.

    forward     card 0: mask A   card 1: mask B         B comes from card 1's generator,
    recompute   card 0: mask A   card 1: mask B         which torch's checkpoint does not put back

Gradients are compared bit by bit with those of the same model without checkpoints, from the same seed. Backward runs
with one thread per card.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from runtime.framed import (
    FRAMES,
    RATE,
    WIDTH,
    Halves,
    Stack,
    Whole,
    attention,
    differing,
    encoder_layer,
    every,
    framed,
    gradients,
    hard_times,
    inside,
)
from torch import Tensor, nn

import poolrt
from poolrt.runtime.regions.running.parted import Parted

pytestmark = pytest.mark.usefixtures("one_thread")


def split(model: nn.Module, sample: Any, count: int = 2) -> nn.Module:
    topology = poolrt.virtual(cards=count, memory="64MiB")
    return poolrt.shard(model.train(), topology=topology, sample=sample, tensor_parallel=count)


# ---- models of transformers


def bert(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_attention_heads=4, **options)
    return transformers.BertForMaskedLM(config)


def gpt2(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "n_layer": 2, "n_embd": WIDTH, "n_head": 4, "n_positions": 16, "n_inner": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))


def llama(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": RATE}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **options))


@pytest.mark.parametrize(
    ("make", "attention", "count"),
    [(bert, "eager", 2), (bert, "sdpa", 4), (gpt2, "eager", 2), (llama, "sdpa", 2), (llama, "eager", 4)],
)
def test_gradient_checkpointing_of_transformers(make: Callable[..., nn.Module], attention: str, count: int):
    model, ids = make(attn_implementation=attention), torch.randint(3, 64, (2, 8))
    batch = {"input_ids": ids, "labels": ids.clone()}
    split(model, batch, count)
    expected = gradients(model, lambda: model(**batch).loss)
    assert differing(expected, gradients(model, lambda: model(**batch).loss, seed=8)), "another seed, other masks"
    for reentrant in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert differing(expected, gradients(model, lambda: model(**batch).loss)) == []


# ---- torch's own layers, in frames of every shape


def stack(make: Callable[[], nn.Module], count: int = 2, layers: int = 4) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A split model and its loss."""
    model, x = Stack(make, layers), torch.randn(2, 3, 8)
    split(model, x, count)
    split_layers = poolrt.report(model).plan.cards[-1].layers
    assert len([name for name in split_layers if "layers." in name]) >= layers, split_layers
    return model, lambda: model(x)


@pytest.mark.parametrize("make", [encoder_layer, attention])
@pytest.mark.parametrize("count", [2, 3])
def test_frames_of_every_shape(make: Callable[[], nn.Module], count: int):
    model, loss = stack(make, count)
    expected = gradients(model, loss)
    for name, frames in FRAMES.items():
        with framed(model, frames):
            assert differing(expected, gradients(model, loss)) == [], name


@pytest.mark.parametrize("reentrant", [False, True])
def test_in_mixed_precision(reentrant: bool):
    model, loss = stack(encoder_layer)

    def mixed() -> Tensor:
        with torch.autocast("vcard", dtype=torch.bfloat16):
            return loss()

    expected = gradients(model, mixed)
    with framed(model, every(2, use_reentrant=reentrant)):
        assert differing(expected, gradients(model, mixed)) == []


# ---- parts that leave a frame


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [inside, Whole])
def test_frames_that_hold_half_a_layer(make: Callable[[], nn.Module], reentrant: bool):
    """Either inside each card's code, or around a tensor in parts: the parts then go out of the frame."""
    model, loss = stack(make)
    halves = [module for module in model.modules() if isinstance(module, Halves)]
    for each in halves:
        each.seen.clear()
    expected = gradients(model, loss)
    lead, other = torch.device("vcard:0"), torch.device("vcard:1")
    in_parts, on_each_card = {(Parted, lead)}, {(Tensor, lead), (Tensor, other)}
    assert {seen for each in halves for seen in each.seen} == (in_parts if make is Whole else on_each_card)
    for each in halves:
        each.options = {"use_reentrant": reentrant}
    with hard_times():
        for _ in range(10):
            assert differing(expected, gradients(model, loss)) == []


# ---- one thread per card, in every order


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_hundred_times_of_a_hundred(reentrant: bool, late: int):
    """25 runs for each kind of checkpoint and each card that is late; every run from another seed."""
    model, loss = stack(attention, layers=2)
    wrong = []
    with hard_times(late):
        for seed in range(25):
            expected = gradients(model, loss, seed)
            with framed(model, every(1 + seed % 2, use_reentrant=reentrant)):
                wrong += differing(expected, gradients(model, loss, seed))
    assert wrong == []
