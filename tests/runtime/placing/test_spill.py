"""Models larger than all the cards together: what the plan spills lies in the pool, and nothing else changes.

card 0   weights gradients activations | state .          42 MiB a card, and the model needs 128
card 1   weights gradients activations | state .
host                                   | the other state
"""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import poolrt
from poolrt.errors import InfeasibleError
from poolrt.runtime.pooled import pooled_of

MIB = 1 << 20
WIDTH = 512


def perceptron(layers: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def all_nbytes(model: nn.Module) -> int:
    """Weights, gradients and AdamW's state."""
    return 4 * sum(parameter.nbytes for parameter in model.parameters())


class Run:
    """A few steps of training on the given cards, and everything that came out of it."""

    def __init__(self, topology: poolrt.Topology, steps: int = 3, **options: object) -> None:
        model = perceptron()
        batch = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
        poolrt.shard(model, topology=topology, sample=batch, micro_batches=2, **options)
        pooled = pooled_of(model)
        self.pool = pooled.spill and pooled.spill.pool
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.losses = []
        for _ in range(steps):
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.losses.append(loss.item())
        self.report = poolrt.report(model)
        self.weights = [parameter.detach().cpu() for parameter in model.parameters()]
        self.state = [value.cpu() for state in optimizer.state.values() for value in state.values()]
        self.places = self._places(optimizer) if self.pool else set()

    def _places(self, optimizer: torch.optim.Optimizer) -> set[int | None]:
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        return {extent.card for moment in moments for extent in self.pool.extents(moment)}

    def equals(self, other: Run) -> bool:
        return self.losses == other.losses and all(
            torch.equal(a, b) for a, b in zip(self.weights + self.state, other.weights + other.state, strict=True)
        )


@pytest.fixture(autouse=True)
def _nothing_from_before():
    yield
    gc.collect()


def test_one_and_a_half_times_all_the_cards_trains_with_the_bits_of_the_run_that_fits():
    fitting = Run(poolrt.virtual(cards=2, memory="256MiB"))
    assert fitting.pool is None
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    gc.collect()
    spilled = Run(poolrt.virtual(cards=2, memory=memory))
    assert spilled.places >= {None}
    assert spilled.equals(fitting)
    for card, measured in zip(spilled.report.plan.cards, spilled.report.measured_peak_bytes, strict=True):
        assert measured <= memory
        assert card.predicted_peak_bytes == pytest.approx(measured, rel=0.05)
    assert "on the host" in spilled.report.plan.explain()


def test_weights_of_layers_spill_when_the_optimizers_state_is_not_enough():
    fitting = Run(poolrt.virtual(cards=2, memory="256MiB"))
    weights = sum(parameter.nbytes for parameter in perceptron().parameters())
    gc.collect()
    spilled = Run(poolrt.virtual(cards=2, memory=int(0.85 * weights)))
    layers = [name for card in spilled.report.plan.cards for name in card.spilled_layers]
    assert layers
    assert spilled.equals(fitting)


def test_a_neighbour_with_room_is_asked_and_the_host_need_not_be():
    """One layer with its state is larger than a card; the card beside it has little to do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4))
    batch = torch.randn(8, 1024)
    poolrt.shard(model, topology=poolrt.virtual(cards=2, memory="20MiB"), sample=batch, micro_batches=1, spill=0)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(batch).sum().backward()
    optimizer.step()
    pool = pooled_of(model).spill.pool
    assert {extent.card for extent in pool.extents(optimizer.state[model[0].weight]["exp_avg_sq"])} >= {1}
    assert pool.stats().tier(None).limit_nbytes == 0


def test_never_means_never():
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    with pytest.raises(InfeasibleError):
        Run(poolrt.virtual(cards=2, memory=memory), spill="never")


def test_too_little_host_memory_says_how_much_would_do():
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    with pytest.raises(InfeasibleError, match="host"):
        Run(poolrt.virtual(cards=2, memory=memory), spill="1MiB")


def test_state_made_before_goes_to_the_pool_too():
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    batch = torch.randn(16, WIDTH)
    plain = perceptron()
    model = copy.deepcopy(plain)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-3) for module in (plain, model)]
    for module, optimizer in zip((plain, model), optimizers, strict=True):
        module(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    poolrt.shard(model, topology=poolrt.virtual(cards=2, memory=memory), sample=batch, micro_batches=1)
    for module, optimizer in zip((plain, model), optimizers, strict=True):
        module(batch).square().mean().backward()
        optimizer.step()
    pool = pooled_of(model).spill.pool
    places = {e.card for state in optimizers[1].state.values() for e in pool.extents(state["exp_avg"])}
    assert None in places
    for ours, plains in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), plains, rtol=1e-5, atol=1e-7)


def test_a_step_that_raises_leaves_no_pool_behind():
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    model, batch = perceptron(), torch.randn(16, WIDTH)
    poolrt.shard(model, topology=poolrt.virtual(cards=2, memory=memory), sample=batch, micro_batches=1)
    pool = pooled_of(model).spill.pool

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ZeroDivisionError

    model(batch).sum().backward()
    with pytest.raises(ZeroDivisionError):
        Broken(model.parameters(), lr=0.1).step()
    model(batch)
    outside = torch.ones(4, device="vcard:0")
    with pytest.raises(poolrt.errors.PoolError):
        pool.extents(outside)


def test_the_pool_is_entered_by_the_thread_that_steps():
    memory = int(all_nbytes(perceptron()) / 1.5 / 2)
    model, batch = perceptron(), torch.randn(16, WIDTH)
    poolrt.shard(model, topology=poolrt.virtual(cards=2, memory=memory), sample=batch, micro_batches=1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch).sum().backward()
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    thread.join()
    pool = pooled_of(model).spill.pool
    assert pool.stats().live_nbytes > 0
