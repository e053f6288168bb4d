"""What the plan of several stages says of each card's memory, beside what the card then holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from runtime.test_tensor_parallel_memory import MODELS, batch_of, cards, measured_peaks

import poolrt

pytestmark = pytest.mark.usefixtures("one_thread")
TWO_BY_TWO, ONE_AND_TWO = [[0, 1], [2, 3]], [[0], [1, 2]]


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    ("name", "stages"),
    [("bert", TWO_BY_TWO), ("gpt2", TWO_BY_TWO), ("llama", TWO_BY_TWO), ("llama", ONE_AND_TWO)],
    ids=str,
)
def test_the_peak_of_every_card_is_the_plans(name: str, stages: Any, micro_batches: int):
    model, batch = MODELS[name](layers=6), batch_of(8, 32)  # enough that one more or less on a card is not much
    topology = cards(sum(map(len, stages)))
    options = {"tensor_parallel": stages, "micro_batches": micro_batches}
    plan = poolrt.plan(model, batch, topology, **options)
    poolrt.shard(model, topology=topology, sample=batch, plan=plan)  # another may cut elsewhere
    assert poolrt.report(model).plan.micro_batches == micro_batches
    for card, measured in zip(plan.cards, measured_peaks(model, batch), strict=True):
        assert card.predicted_peak_bytes == pytest.approx(measured, rel=0.05), f"card {card.index}"


def test_what_a_card_of_a_stage_cannot_hold_of_its_pieces_comes_from_the_pool():
    model, batch = MODELS["llama"]().double(), batch_of(8, 32)
    reference, topology = copy.deepcopy(model), cards(4, "4200KiB")
    options = {"topology": topology, "sample": batch, "tensor_parallel": 2, "micro_batches": 4}
    with pytest.raises(poolrt.errors.InfeasibleError):
        poolrt.shard(model, **options, spill="never")
    poolrt.shard(model, **options, spill="64MiB")
    assert poolrt.report(model).plan.spills
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (reference, model)]
    for _ in range(3):
        losses = []
        for each, optimizer in zip((reference, model), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(each(**batch).loss)
            losses[-1].backward()
            optimizer.step()
        assert torch.allclose(*losses, rtol=1e-6)
    peaks = poolrt.report(model).measured_peak_bytes
    assert all(peak <= card.memory_bytes for peak, card in zip(peaks, topology.cards, strict=True))
