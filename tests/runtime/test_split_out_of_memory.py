"""Out of memory in stages of several cards, swept over capacities: everything is as before, and training goes on.

    2x2     stage 0: cards 0 1    stage 1: cards 2 3     two micro-batches in lanes
    1x2     stage 0: cards 0 1                           two micro-batches in lanes

The card that is short is a lead card or one beside it.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter

import pytest
import torch
from settled import settle
from torch import nn

import poolrt
from poolrt.runtime.pooled import pooled_of

CAPACITY = 64 << 20
POINTS = 6
WIDTH = 64
pytestmark = pytest.mark.usefixtures("one_thread")


class Training:
    """Feed-forward blocks on stages of two cards that have made their first steps; `base` and `peak` in bytes."""

    def __init__(self, stages: int) -> None:
        torch.manual_seed(0)
        self.cards = range(2 * stages)
        self.model = nn.Sequential(*(self._block() for _ in range(4)))
        self.batch = torch.randn(64, WIDTH)
        poolrt.shard(
            self.model,
            topology=poolrt.virtual(cards=len(self.cards), memory=CAPACITY),
            sample=self.batch,
            tensor_parallel=2,
            micro_batches=2,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.phase = ""
        for _ in range(2):
            self.step()
        self.optimizer.zero_grad()
        gc.collect()
        self.base = self.allocated()
        self.peak = [torch.vcard.max_memory_allocated(card) for card in self.cards]

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def step(self) -> None:
        """One step; `phase` tells how far it came."""
        self.phase = "forward"
        loss = self.model(self.batch).square().mean()
        self.phase = "backward"
        loss.backward()
        self.phase = "optimizer"
        self.optimizer.step()
        self.phase = "done"

    def allocated(self) -> list[int]:
        return [torch.vcard.memory_allocated(card) for card in self.cards]

    def values(self) -> list[torch.Tensor]:
        """Parameters and optimizer state."""
        moments = [state["exp_avg"] for state in self.optimizer.state.values()]
        return [t.detach().cpu().clone() for t in (*self.model.parameters(), *moments)]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("beside", [False, True], ids=["the lead card", "the card beside it"])
def test_a_sweep_of_capacities(stages: int, beside: bool):
    training = Training(stages)
    assert pooled_of(training.model).plan.micro_batches == 2
    card = training.cards[-1 if beside else -2]
    threads, met = threading.active_count(), Counter[str]()
    span = training.peak[card] - training.base[card]
    capacities = [training.base[card] + span * point // POINTS for point in range(POINTS)]
    capacities += [training.peak[card] - 512 * point for point in (1, 4, 16)]
    for capacity in capacities:
        torch.vcard.set_capacity(card, capacity)
        before = training.values()
        try:
            training.step()
        except torch.OutOfMemoryError as error:
            assert error.card == card
            assert f"card {card} (vcard:{card}) is out of memory" in str(error)
            assert "What would make it fit" in str(error)
            assert error.weights_nbytes > 0
            assert 1.9 < error.optimizer_nbytes / error.weights_nbytes < 2.1, "AdamW keeps two moments"
            if training.phase != "optimizer":
                assert all(p.grad is None for p in training.model.parameters()), "gradients are as before"
            assert all(torch.equal(a, b) for a, b in zip(before, training.values(), strict=True))
        met[training.phase] += 1
        training.optimizer.zero_grad()
        settle(lambda: training.allocated() == training.base and threading.active_count() == threads)
        assert training.allocated() == training.base, f"bytes left behind after {training.phase} at {capacity}"
        assert threading.active_count() == threads, "no lane is left running"
    torch.vcard.set_capacity(card, CAPACITY)
    assert met["forward"], f"the sweep met {dict(met)}"
    assert met["backward"] + met["optimizer"], f"the sweep met {dict(met)}"
    training.step()
    assert training.phase == "done"


@pytest.mark.parametrize("stages", [1, 2])
def test_the_optimizer_is_refused_before_it_changes_a_piece(stages: int):
    """torch's optimizers update card after card: without a reservation the first card would be a step ahead."""
    training = Training(stages)
    optimizer = torch.optim.AdamW(training.model.parameters(), lr=1e-3)  # a fresh one, whose state must be made
    training.model(training.batch).square().mean().backward()
    held, before = training.allocated(), training.values()
    torch.vcard.set_capacity(1, held[1] + 4096)
    with pytest.raises(torch.OutOfMemoryError, match="vcard:1"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, training.values(), strict=True))
    assert training.allocated() == held
    torch.vcard.set_capacity(1, CAPACITY)
    optimizer.step()
    assert not any(torch.equal(a, b.detach().cpu()) for a, b in zip(before, training.model.parameters(), strict=False))


def test_memory_that_ends_while_the_second_stage_is_placed_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(*(Training._block() for _ in range(4)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    topology, batch = poolrt.virtual(cards=4, memory=CAPACITY), torch.randn(8, WIDTH)
    plan = poolrt.plan(model, batch, topology, tensor_parallel=2, micro_batches=2)
    torch.vcard.set_capacity(3, 8 << 10)
    with pytest.raises(poolrt.OutOfMemoryError) as caught:
        poolrt.shard(model, topology=topology, sample=batch, plan=plan)
    assert caught.value.card == 3
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    caught = None  # type: ignore[assignment]  # it holds frames
    gc.collect()
    assert [torch.vcard.memory_allocated(card) for card in range(4)] == [0] * 4
    torch.vcard.set_capacity(3, CAPACITY)
    poolrt.shard(model, topology=topology, sample=batch, plan=plan)
    model(batch).sum().backward()
