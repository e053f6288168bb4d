"""Optimizers step sharded parameters piece by piece, with the bits of a step of the whole, and keep state in pieces.

The pieces here have lengths that fill the processor's vectors: torch's fused optimizers for the CPU round what is left
over after the last full vector differently, in the last bit, whether a tensor is split or not.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.tensor import ShardedTensor

Devices = tuple[torch.device, ...]
Twins = Callable[[], tuple[nn.Module, nn.Module]]
Make = Callable[[Iterable[nn.Parameter]], Optimizer]

ELEMENTWISE: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW one by one": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, maximize=True),
    "AdamW amsgrad foreach": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "AdamW lr tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adagrad foreach": lambda p: torch.optim.Adagrad(p, lr=0.01, foreach=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam foreach": lambda p: torch.optim.NAdam(p, lr=0.01, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam foreach": lambda p: torch.optim.RAdam(p, lr=0.01, foreach=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "ASGD foreach": lambda p: torch.optim.ASGD(p, lr=0.01, foreach=True),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
WHOLE: dict[str, Make] = {
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Adafactor foreach": lambda p: torch.optim.Adafactor(p, lr=0.01, foreach=True),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def train(model: nn.Module, optimizer: Optimizer, tokens: Tensor, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens).logsumexp(-1).mean()
        loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def assert_same_bits(sharded: nn.Module, ordinary: nn.Module) -> None:
    for name, parameter in ordinary.named_parameters():
        assert torch.equal(sharded.get_parameter(name).cpu(), parameter.cpu()), name


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_step_in_pieces_has_the_bits_of_a_step_of_the_whole(name: str, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        train(model, ELEMENTWISE[name](model.parameters()), tokens, steps=3)
    assert_same_bits(sharded, ordinary)


@pytest.mark.parametrize("name", WHOLE)
def test_an_optimizer_that_needs_the_whole_gets_it(name: str, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        train(model, WHOLE[name](list(model.parameters())), tokens, steps=2)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(parameter.cpu(), expected.cpu(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "AdamW fused", "AdamW amsgrad", "Adafactor"])
def test_an_optimizer_made_before_the_split_goes_on_with_its_state(
    name: str, make_model: Callable[[], nn.Module], splits: dict[str, Split], devices: Devices, tokens: Tensor
) -> None:
    ordinary = make_model().double().to(devices[0])
    sharded = copy.deepcopy(ordinary)
    optimizers = {model: (ELEMENTWISE | WHOLE)[name](model.parameters()) for model in (sharded, ordinary)}
    for model, optimizer in optimizers.items():
        train(model, optimizer, tokens, steps=2)
    shard_parameters(sharded, splits, devices[:2])
    for model, optimizer in optimizers.items():
        train(model, optimizer, tokens, steps=2)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(parameter.cpu(), expected.cpu(), rtol=1e-12, atol=1e-14)
    if name in ELEMENTWISE:
        assert_same_bits(sharded, ordinary)
        assert_state_in_pieces(sharded.up.weight, optimizers[sharded])


def assert_state_in_pieces(parameter: nn.Parameter, optimizer: Optimizer) -> None:
    like_it = [value for value in optimizer.state[parameter].values() if value.dim() > 0]
    assert like_it
    for value in like_it:
        assert isinstance(value, ShardedTensor)
        assert [piece.device for piece in value.pieces] == [piece.device for piece in parameter.pieces]


def test_state_of_a_sharded_parameter_lies_as_it_does(twins: Twins, tokens: Tensor) -> None:
    model, _ = twins()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, tokens, steps=1)
    assert_state_in_pieces(model.up.weight, optimizer)
    assert type(optimizer.state[model.norm.weight]["exp_avg"]) is Tensor
    assert optimizer.state[model.up.weight]["exp_avg"].shape == model.up.weight.shape


def test_state_dict_is_the_ordinary_one(twins: Twins, tokens: Tensor) -> None:
    saved = []
    for model in twins():
        optimizer = torch.optim.AdamW(model.parameters())
        train(model, optimizer, tokens, steps=2)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved.append(torch.load(file, map_location="cpu"))
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    for key, state in saved[1]["state"].items():
        assert all(
            type(value) is Tensor and torch.equal(value, state[n]) for n, value in saved[0]["state"][key].items()
        )


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "AdamW foreach", "AdamW fused"])
def test_training_resumes_from_a_checkpoint_of_either_kind(name: str, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    reference = copy.deepcopy(ordinary)
    first = ELEMENTWISE[name](reference.parameters())
    train(reference, first, tokens, steps=2)
    for model in (sharded, ordinary):
        model.load_state_dict(reference.state_dict())
    resumed = {model: ELEMENTWISE[name](model.parameters()) for model in (sharded, ordinary)}
    state = first.state_dict()
    resumed[sharded].load_state_dict(copy.deepcopy(state))  # torch shares what it loads
    assert_state_in_pieces(sharded.up.weight, resumed[sharded])  # before any step: the first card never has it whole
    train(sharded, resumed[sharded], tokens, steps=1)
    resumed[ordinary].load_state_dict(state)
    train(ordinary, resumed[ordinary], tokens, steps=1)
    assert_same_bits(sharded, ordinary)
    resumed[ordinary].load_state_dict(copy.deepcopy(resumed[sharded].state_dict()))
    assert all(type(v) is Tensor for state in resumed[ordinary].state.values() for v in state.values())
    for model, optimizer in resumed.items():
        train(model, optimizer, tokens, steps=1)
    assert_same_bits(sharded, ordinary)


def test_loading_leaves_the_state_dict_as_it_was(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    optimizer = torch.optim.AdamW(ordinary.parameters())
    train(ordinary, optimizer, tokens, steps=1)
    state = optimizer.state_dict()
    torch.optim.AdamW(sharded.parameters()).load_state_dict(state)
    assert all(type(v) is Tensor for entry in state["state"].values() for v in entry.values())
    with pytest.raises(ValueError, match="parameter group"):
        torch.optim.AdamW([sharded.up.weight]).load_state_dict(state)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "Adafactor"])
def test_undoing_the_split_brings_the_state_back(name: str, twins: Twins, devices: Devices, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    optimizers = {model: (ELEMENTWISE | WHOLE)[name](model.parameters()) for model in (sharded, ordinary)}
    for model, optimizer in optimizers.items():
        train(model, optimizer, tokens, steps=2)
    unshard_parameters(sharded)
    state = optimizers[sharded].state[sharded.up.weight]
    assert all(type(value) is Tensor and value.device in (devices[0], torch.device("cpu")) for value in state.values())
    for model, optimizer in optimizers.items():
        train(model, optimizer, tokens, steps=1)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(parameter.cpu(), expected.cpu(), rtol=1e-12, atol=1e-14)


def test_a_step_takes_no_card_beyond_its_pieces(devices: Devices) -> None:
    """AdamW one by one: two states and two temporaries of the piece's size, and nothing of the whole's."""
    model = nn.Linear(1024, 512, bias=False, device=devices[0])  # 2 MiB
    shard_parameters(model, {"weight": Split.from_shares(512, [1, 1])}, devices[:2])
    piece = 1 << 20
    model.weight.grad = torch.ones_like(model.weight)
    before = [torch.vcard.memory_allocated(card) for card in (0, 1)]
    assert before == [2 * piece, 2 * piece]
    for card in (0, 1):
        torch.vcard.reset_peak_memory_stats(card)
    torch.optim.AdamW(model.parameters(), foreach=False).step()
    assert all(torch.vcard.max_memory_allocated(card) <= 6 * piece + 4096 for card in (0, 1))
