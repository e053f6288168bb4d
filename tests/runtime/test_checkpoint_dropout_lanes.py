"""Checkpoints with dropout in lanes: whole layers on cards, and stages of several cards, in one and several parts.

    stage 0   |[ frame ] [ frame ] |  [  fra|me  ]         a frame may begin on one card and go on to the next;
    stage 1   |                    |        |    [ frame ] its arguments often lie on cards that are another lane's

Gradients are compared bit by bit with those of the same model without checkpoints, from the same seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import transformers
from runtime.framed import (
    FRAMES,
    RATE,
    WIDTH,
    Stack,
    Whole,
    attention,
    differing,
    encoder_layer,
    every,
    framed,
    gradients,
    hard_times,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import poolrt

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES: dict[str, tuple[int, Any]] = {"pipeline": (2, 1), "2x2": (4, [[0, 1], [2, 3]]), "1+2": (3, [[0], [1, 2]])}
"""cards, tensor_parallel"""


def pooled(model: nn.Module, sample: Any, stages: str, micro_batches: int) -> nn.Module:
    count, tensor_parallel = STAGES[stages]
    topology = poolrt.virtual(cards=count, memory="64MiB")
    options = {"tensor_parallel": tensor_parallel, "micro_batches": micro_batches}
    poolrt.shard(model.train(), topology=topology, sample=sample, **options)
    assert poolrt.report(model).plan.micro_batches == micro_batches
    return model


def stack(make: Callable[[], nn.Module], stages: str, micro_batches: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x = Stack(make), torch.randn(4, 3, 8)
    pooled(model, x, stages, micro_batches)
    return model, lambda: model(x)


@pytest.mark.parametrize(
    ("stages", "make", "micro_batches"),
    [
        ("pipeline", encoder_layer, 4),
        ("pipeline", attention, 1),
        ("2x2", encoder_layer, 1),
        ("2x2", attention, 2),
        ("2x2", attention, 4),
        ("1+2", Whole, 2),
    ],
)
def test_frames_of_every_shape(stages: str, make: Callable[[], nn.Module], micro_batches: int):
    model, loss = stack(make, stages, micro_batches)
    expected = gradients(model, loss)
    assert differing(expected, gradients(model, loss, seed=8)), "another seed, other masks"
    for name, frames in FRAMES.items():
        with framed(model, frames):
            assert differing(expected, gradients(model, loss)) == [], name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("stages", ["pipeline", "2x2"])
def test_ten_times_of_ten(stages: str, reentrant: bool):
    model, loss = stack(attention, stages, micro_batches=4)
    wrong = []
    with hard_times(late=1):
        for seed in range(10):
            expected = gradients(model, loss, seed)
            with framed(model, every(1 + seed % 2, use_reentrant=reentrant)):
                wrong += differing(expected, gradients(model, loss, seed))
    assert wrong == []


@pytest.mark.parametrize("stages", ["pipeline", "2x2"])
def test_gradient_checkpointing_of_transformers(stages: str):
    """Masks and rotary tables are arguments of every frame and lie on the first card."""
    sizes = {"vocab_size": 64, "num_hidden_layers": 4, "hidden_size": WIDTH, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": RATE}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    ids = torch.randint(3, 64, (4, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone(), "use_cache": False}
    pooled(model, batch, stages, micro_batches=2)
    expected = gradients(model, lambda: model(**batch).loss)
    for reentrant in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for _ in range(3):
            assert differing(expected, gradients(model, lambda: model(**batch).loss)) == []


class Shared(nn.Module):
    """One layer, run four times, each time with other masks; and a dropout between layers, in the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.layer, self.head = nn.Linear(8, WIDTH), encoder_layer(), nn.Linear(WIDTH, 4)
        self.drop = nn.Dropout(RATE)
        self.options: dict[str, bool] | None = None

    def once(self, x: Tensor) -> Tensor:
        return self.layer(self.drop(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for _ in range(4):
            x = self.once(x) if self.options is None else checkpoint(self.once, x, **self.options)
        return self.head(x).square().mean()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_runs_again_and_again(reentrant: bool):
    model, x = Shared(), torch.randn(4, 3, 8)
    pooled(model, x, "pipeline", micro_batches=2)
    expected = gradients(model, lambda: model(x))
    model.options = {"use_reentrant": reentrant}
    found = gradients(model, lambda: model(x))
    if reentrant:  # four backwards add their gradients up in another order than one
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    else:
        assert differing(expected, found) == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_generators_are_after_a_step_where_they_are_without_frames(reentrant: bool):
    model, loss = stack(encoder_layer, "pipeline", micro_batches=4)

    def next_numbers(frames: Any = None) -> list[list[float]]:
        if frames is None:
            gradients(model, loss)
        else:
            with framed(model, frames):
                gradients(model, loss)
        return [torch.rand(2, device=device).tolist() for device in ("cpu", "vcard:0", "vcard:1")]

    expected = next_numbers()
    for _ in range(3):
        assert next_numbers(every(1, use_reentrant=reentrant)) == expected


def test_outside_lanes_torch_keeps_what_it_did():
    stack(encoder_layer, "pipeline", micro_batches=2)
    x = torch.ones(64, device="vcard:0", requires_grad=True)
    devices, states = torch.utils.checkpoint.get_device_states(x)
    assert devices == [0]
    first = torch.rand(3, device="vcard:0").tolist()
    torch.utils.checkpoint.set_device_states(devices, states, device_type="vcard")
    assert torch.rand(3, device="vcard:0").tolist() == first
