"""Out of memory at any point of a step, swept over capacities: everything is as before, and training goes on."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from settled import settle
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import poolrt

MICRO_BATCHES = 4
CAPACITY = 64 << 20
POINTS = 24


class Training:
    """A BERT on two virtual cards that has made its first steps; `base` and `peak` are bytes per card."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=500, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256
        )
        self.model: nn.Module = BertForMaskedLM(config).train()
        ids = torch.randint(3, 400, (16, 32))
        self.batch = {"input_ids": ids, "labels": ids.clone()}
        topology = poolrt.virtual(cards=2, memory=CAPACITY)
        poolrt.shard(self.model, topology=topology, sample=self.batch, micro_batches=MICRO_BATCHES)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.stage = ""
        for _ in range(2):
            self.step()
        self.optimizer.zero_grad()
        self.base, self.peak = self.allocated(), [torch.vcard.max_memory_allocated(card) for card in (0, 1)]

    def step(self) -> None:
        """One step; `stage` tells how far it came."""
        self.optimizer.zero_grad()
        self.stage = "forward"
        loss = self.model(**self.batch).loss
        self.stage = "backward"
        loss.backward()
        self.stage = "optimizer"
        self.optimizer.step()
        self.stage = "done"

    @staticmethod
    def allocated() -> list[int]:
        return [torch.vcard.memory_allocated(card) for card in (0, 1)]

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().cpu().clone() for p in self.model.parameters()]


@pytest.mark.parametrize("card", [0, 1])
def test_a_sweep_of_capacities(card: int):
    training = Training()
    stages: Counter[str] = Counter()
    span = training.peak[card] - training.base[card]
    # Dense near the peak, where backward and not forward is what does not fit.
    capacities = [training.base[card] + span * point // POINTS for point in range(1, POINTS)]
    capacities += [training.peak[card] - 512 * point for point in range(1, 200, 8)]
    for capacity in capacities:
        torch.vcard.set_capacity(card, capacity)
        before = training.parameters()
        try:
            training.step()
        except torch.OutOfMemoryError as error:
            assert error.card == card
            assert f"card {card} (vcard:{card}) is out of memory" in str(error)
            assert "What would make it fit" in str(error)
            if training.stage != "optimizer":
                assert all(p.grad is None for p in training.model.parameters()), "gradients are as before"
            assert all(torch.equal(a, b) for a, b in zip(before, training.parameters(), strict=True))
        stages[training.stage] += 1
        training.optimizer.zero_grad()
        settle(lambda: training.allocated() == training.base)
        assert training.allocated() == training.base, f"bytes left behind after {training.stage} at {capacity}"
        assert threading.active_count() == threads_at_rest(), "no lane is left running"
        assert torch.vcard.max_memory_allocated(card) <= training.peak[card]
    torch.vcard.set_capacity(card, CAPACITY)
    assert stages["forward"], f"the sweep met {dict(stages)}"
    assert stages["backward"], f"the sweep met {dict(stages)}"
    training.batch = {name: value[:4] for name, value in training.batch.items()}
    training.step()
    assert training.stage == "done"


def threads_at_rest() -> int:
    return len([t for t in threading.enumerate() if not t.name.startswith(("lane", "probe"))])


def test_the_optimizer_is_refused_before_it_changes_anything():
    """torch's optimizers update card after card: without a reservation the first card would be a step ahead."""
    training = Training()
    optimizer = torch.optim.AdamW(training.model.parameters(), lr=1e-3)  # a fresh one, whose state must be made
    training.model(**training.batch).loss.backward()
    held = training.allocated()
    torch.vcard.set_capacity(1, held[1] + 4096)
    before = training.parameters()
    with pytest.raises(torch.OutOfMemoryError, match="vcard:1"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, training.parameters(), strict=True))
    assert training.allocated() == held
    torch.vcard.set_capacity(1, CAPACITY)
    optimizer.step()


def test_the_message_tells_what_fills_the_card():
    training = Training()
    torch.vcard.set_capacity(1, training.base[1] + 4096)
    with pytest.raises(poolrt.OutOfMemoryError) as caught:
        training.step()
    error = caught.value
    assert error.card == 1
    assert error.weights_nbytes > 0
    assert 1.9 < error.optimizer_nbytes / error.weights_nbytes < 2.1, "AdamW keeps two moments"
    assert error.gradients_nbytes == 0
    assert "smaller batch" in str(error)
