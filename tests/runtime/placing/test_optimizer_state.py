"""An optimizer does not notice that its parameters moved, and its step happens whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from settled import settle
from torch import nn
from torch.optim import Optimizer

import poolrt
from poolrt.runtime.placing.optimizer_state import state_nbytes
from poolrt.topology.topology import Topology

MIB = 1 << 20

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "AdamW one by one": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
}


def make_model(width: int = 16) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(4))).double()


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int = 0) -> None:
    data = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 16, dtype=torch.float64, generator=data)
        model(x).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def held_nbytes(optimizer: Optimizer, card: int) -> int:
    """What its parameters, their gradients and its state take on a card."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*parameters, *(parameter.grad for parameter in parameters), *states]
    device = torch.device("vcard", card)
    return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor) and each.device == device)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_state_it_had(name: str, two_cards: Topology) -> None:
    reference = make_model()
    reference_optimizer = OPTIMIZERS[name](reference.parameters())
    model = copy.deepcopy(reference)
    optimizer = OPTIMIZERS[name](model.parameters())
    for trained, its_optimizer in ((reference, reference_optimizer), (model, optimizer)):
        train(trained, its_optimizer, steps=2, seed=1)
    poolrt.shard(model, topology=two_cards, micro_batches=1)
    for trained, its_optimizer in ((reference, reference_optimizer), (model, optimizer)):
        train(trained, its_optimizer, steps=3, seed=2)
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert parameter.device.type == "vcard"
        torch.testing.assert_close(parameter.cpu(), expected, rtol=1e-12, atol=1e-14)


def test_state_lies_where_its_parameter_lies(two_cards: Topology) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, steps=1)
    poolrt.shard(model, topology=two_cards, micro_batches=1)
    train(model, optimizer, steps=1)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].device == state["exp_avg_sq"].device == parameter.device
        assert state["step"].item() == 2


def test_bytes_of_state_by_card(two_cards: Topology) -> None:
    model = poolrt.shard(make_model(), topology=two_cards, micro_batches=1)
    assert state_nbytes(model.parameters()) == {}
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, steps=1)
    held = state_nbytes(model.parameters())
    for device in {parameter.device for parameter in model.parameters()}:
        weights = sum(p.nbytes for p in model.parameters() if p.device == device)
        assert held[device] == 2 * weights
    assert state_nbytes(make_model().parameters()) == {}


def test_the_state_of_an_optimizer_that_is_gone_is_not_counted(two_cards: Topology) -> None:
    model = poolrt.shard(make_model(), topology=two_cards, micro_batches=1)
    train(model, torch.optim.AdamW(model.parameters()), steps=1)
    assert state_nbytes(model.parameters()) == {}


@pytest.mark.parametrize("name", ["AdamW", "AdamW one by one", "SGD momentum", "Adagrad"])
@pytest.mark.parametrize("card", [0, 1])
def test_a_step_that_cannot_fit_changes_nothing(name: str, card: int) -> None:
    topology = poolrt.virtual(cards=2, memory="16MiB")
    model = poolrt.shard(make_model(256), topology=topology, micro_batches=1)
    optimizer = OPTIMIZERS[name](model.parameters())
    model(torch.randn(8, 256, dtype=torch.float64)).pow(2).mean().backward()
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    state = str(optimizer.state_dict())
    settle(lambda: torch.vcard.memory_allocated(card) == held_nbytes(optimizer, card))
    torch.vcard.set_capacity(card, torch.vcard.memory_allocated(card) + 256 * 1024)
    with pytest.raises(torch.OutOfMemoryError, match=f"vcard:{card}"):
        optimizer.step()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(before, model.parameters(), strict=True))
    assert str(optimizer.state_dict()) == state
    torch.vcard.set_capacity(card, 16 * MIB)
    optimizer.step()
    assert not any(torch.equal(a, b.cpu()) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_asked_for_beforehand_is_enough_and_not_much_more(name: str) -> None:
    """With exactly what the step's own peak was, the step is let through; that it is never refused midway is above."""
    topology = poolrt.virtual(cards=2, memory="16MiB")
    model = poolrt.shard(make_model(64), topology=topology, micro_batches=1)

    def fresh_step() -> tuple[Optimizer, list[int]]:
        optimizer = OPTIMIZERS[name](model.parameters())
        model(torch.randn(8, 64, dtype=torch.float64)).pow(2).mean().backward()
        for card in (0, 1):
            torch.vcard.reset_peak_memory_stats(card)
        return optimizer, [torch.vcard.memory_allocated(card) for card in (0, 1)]

    optimizer, _ = fresh_step()
    optimizer.step()
    peaks = [torch.vcard.max_memory_allocated(card) for card in (0, 1)]
    del optimizer
    optimizer, _ = fresh_step()
    for card in (0, 1):
        torch.vcard.set_capacity(card, peaks[card])
    optimizer.step()


def test_other_models_optimizers_are_left_alone(two_cards: Topology) -> None:
    poolrt.shard(make_model(), topology=two_cards, micro_batches=1)
    stranger = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(stranger.parameters())
    stranger(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert state_nbytes(stranger.parameters()) == {}
