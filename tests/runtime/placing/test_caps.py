"""Logical cards of one device hold to their shares, in forward, backward and the optimizer's step.

vcard:0, 256 MiB   | card 0: 24 MiB | card 1: 24 MiB | nobody's |
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import poolrt
from poolrt.runtime.pooled import pooled_of

MIB = 1 << 20
WIDTH = 512


@pytest.fixture
def shares():
    poolrt.virtual(cards=1, memory="256MiB")

    def cut(memory: str, cards: int = 2) -> poolrt.Topology:
        return poolrt.logical("vcard:0", cards=cards, memory=memory)

    torch.vcard.reset_hazards()
    yield cut
    gc.collect()
    # No memory is used anew while a share's stream still reads it. What the caller's stream reads need not be recorded:
    # the shares allocate within a step only, and a step begins with waiting for the caller.
    assert [hazard for hazard in torch.vcard.hazards() if "while the default stream" not in hazard] == []


def perceptron(layers: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shares_of_a_card_train_as_the_whole_one(shares, name):
    plain, batch = perceptron(), torch.randn(16, WIDTH, dtype=torch.float64)
    model = copy.deepcopy(plain)
    poolrt.shard(model, topology=shares("96MiB"), sample=batch, micro_batches=1)
    for module in (plain, model):
        train(module, OPTIMIZERS[name](module.parameters()), batch)
    for ours, plains in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), plains, rtol=1e-12, atol=1e-14)


def test_weights_gradients_and_state_come_from_the_share_of_their_card(shares):
    model, batch = perceptron(), torch.randn(16, WIDTH, dtype=torch.float64)
    poolrt.shard(model, topology=shares("96MiB"), sample=batch, micro_batches=2, optimizer="adamw")
    pooled = pooled_of(model)
    caps = pooled.placement.caps
    weights = pooled.placement.weight_nbytes()
    assert all(nbytes > 0 for nbytes in weights)
    assert [caps.used_nbytes(card) for card in (0, 1)] == pytest.approx(weights, rel=0.02)
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch).square().mean().backward()
    assert [caps.used_nbytes(card) for card in (0, 1)] == pytest.approx([2 * n for n in weights], rel=0.02)
    optimizer.step()
    assert [caps.used_nbytes(card) for card in (0, 1)] == pytest.approx([4 * n for n in weights], rel=0.02)
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.zero_grad()
    assert [caps.used_nbytes(card) for card in (0, 1)] == pytest.approx([3 * n for n in weights], rel=0.02)


def test_a_share_that_is_full_is_out_of_memory_though_the_device_is_not(shares):
    model, batch = perceptron(), torch.randn(16, WIDTH, dtype=torch.float64)
    poolrt.shard(model, topology=shares("96MiB"), sample=batch, micro_batches=1)
    pooled_of(model).placement.caps.leave_room_for([96 * MIB - (12 << 20), 0])
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    with pytest.raises(torch.OutOfMemoryError, match="card 0"):
        train(model, torch.optim.AdamW(model.parameters()), batch)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), before, strict=True))
    model.zero_grad()
    gc.collect()
    pooled_of(model).placement.caps.leave_room_for([0, 0])
    train(model, torch.optim.AdamW(model.parameters()), batch, steps=1)


def test_a_step_without_room_on_the_second_share_changes_nothing_on_the_first(shares):
    model, batch = perceptron(), torch.randn(16, WIDTH, dtype=torch.float64)
    poolrt.shard(model, topology=shares("96MiB"), sample=batch, micro_batches=1)
    caps = pooled_of(model).placement.caps
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch).square().mean().backward()
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    caps.leave_room_for([0, 96 * MIB - caps.used_nbytes(1)])
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is not None for parameter in model.parameters())
    caps.leave_room_for([0, 0])
    optimizer.step()
    assert not any(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), before, strict=True))


def test_what_does_not_fit_the_shares_goes_to_the_host(shares):
    plain, batch = perceptron(16), torch.randn(16, WIDTH, dtype=torch.float64)
    need = 4 * sum(parameter.nbytes for parameter in plain.parameters())
    model = copy.deepcopy(plain)
    poolrt.shard(model, topology=shares(int(need / 1.25 / 2)), sample=batch, micro_batches=1)
    assert pooled_of(model).plan.spills
    for module in (plain, model):
        train(module, torch.optim.AdamW(module.parameters(), lr=1e-3), batch)
    for ours, plains in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), plains, rtol=1e-12, atol=1e-14)
