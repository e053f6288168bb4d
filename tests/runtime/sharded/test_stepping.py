"""A stand-in with the pieces for parameters takes a step; nobody sees it but the optimizer's own code.

    optimizer    params [a, p]          state {a: .., p: exp_avg (12, 8), step 3}
    stand-in     params [a, p0, p1]     state {a: .., p0: exp_avg (6, 8), step 3, p1: exp_avg (6, 8), step 3}

What the stand-in has made of state and groups is the optimizer's after the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters
from poolrt.runtime.sharded.stepping import StandIn, steps_by_piece
from poolrt.runtime.sharded.tensor import ShardedTensor

Devices = tuple[torch.device, ...]
Twins = Callable[[], tuple[nn.Module, nn.Module]]


class Own(torch.optim.AdamW):
    """Somebody's own optimizer: its steps see whole parameters."""

    seen: list[tuple[int, ...]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.seen = [tuple(p.shape) for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def backward(model: nn.Module, tokens: Tensor) -> Tensor:
    loss = model(tokens).logsumexp(-1).mean()
    loss.backward()
    return loss


def assert_same_bits(sharded: nn.Module, ordinary: nn.Module) -> None:
    for name, parameter in ordinary.named_parameters():
        assert torch.equal(sharded.get_parameter(name).cpu(), parameter.cpu()), name


def test_the_drawing(devices: Devices) -> None:
    model = nn.Module()
    model.a, model.p = nn.Parameter(torch.ones(3, device=devices[0])), nn.Parameter(torch.ones(12, 8))
    shard_parameters(model, {"p": Split.from_counts((6, 6))}, devices[:2])
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    stand_in = StandIn(optimizer).optimizer
    assert type(stand_in) is torch.optim.AdamW
    a, first, second = stand_in.param_groups[0]["params"]
    assert a is model.a
    assert (first, second) == model.p.pieces
    states = [stand_in.state[of] for of in (a, first, second)]
    assert [tuple(state["exp_avg"].shape) for state in states] == [(3,), (6, 8), (6, 8)]
    assert [state["step"].item() for state in states] == [3.0] * 3
    assert states[1]["step"] is not states[2]["step"]
    assert all(type(value) is Tensor for state in states for value in state.values())


def note_parameters(seen: list[list[int]], optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    seen.append([id(p) for group in optimizer.param_groups for p in group["params"]])


def test_groups_and_hooks_see_whole_parameters(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        parameters = list(model.parameters())
        groups = [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "weight_decay": 0.1}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        seen: list[list[int]] = []
        look = partial(note_parameters, seen)
        optimizer.register_step_pre_hook(look)
        optimizer.register_step_post_hook(look)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, tokens)
            optimizer.step()
            scheduler.step()
        assert seen == [[id(p) for p in parameters]] * 6
        assert list(optimizer.state) == parameters
        assert all(piece.grad is None for p in parameters if isinstance(p, ShardedTensor) for piece in p.pieces)
    assert_same_bits(sharded, ordinary)


def test_parameters_without_gradient_or_state_stay_so(twins: Twins, tokens: Tensor) -> None:
    sharded, _ = twins()
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    before = sharded.up.weight.cpu()
    backward(sharded, tokens)
    sharded.up.weight.grad = None
    optimizer.step()
    assert torch.equal(sharded.up.weight.cpu(), before)
    assert len(optimizer.state) == 0


def test_gradients_that_were_assigned_whole(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    backward(ordinary, tokens)
    for name, parameter in ordinary.named_parameters():
        sharded.get_parameter(name).grad = parameter.grad.clone()
    for model in (sharded, ordinary):
        torch.optim.AdamW(model.parameters()).step()
    assert_same_bits(sharded, ordinary)


def test_other_optimizers_step_the_whole(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        optimizer = Own(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, tokens)
            optimizer.step()
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(parameter.cpu(), expected.cpu(), rtol=1e-12, atol=1e-15)
    assert optimizer.seen == [tuple(p.shape) for p in ordinary.parameters()]


def test_which_steps_a_stand_in_takes() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    known, own = torch.optim.Adam(parameters), Own(parameters)
    assert steps_by_piece(known, (known,), {})
    assert steps_by_piece(known, (known, None), {"closure": None})
    assert not steps_by_piece(known, (known, list), {})
    assert not steps_by_piece(known, (known,), {"closure": list})
    assert not steps_by_piece(own, (own,), {})
    known.param_groups[0]["differentiable"] = True
    assert not steps_by_piece(known, (known,), {})


def test_a_closure_computes_the_gradients_of_the_step(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    losses = []
    for model in (sharded, ordinary):
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

        def closure(model: nn.Module = model, optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            return backward(model, tokens)

        losses.append([optimizer.step(closure).item() for _ in range(2)])
    assert losses[0] == losses[1]
    assert_same_bits(sharded, ordinary)


def test_a_step_that_raised_leaves_an_optimizer_that_steps(devices: Devices) -> None:
    model, ordinary = nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)
    ordinary.load_state_dict(model.state_dict())
    shard_parameters(model, {"weight": Split.from_shares(256, [1, 1])}, devices[:2])
    optimizers = {m: torch.optim.AdamW(m.parameters()) for m in (model, ordinary)}
    for m in optimizers:
        m.weight.grad = torch.ones_like(m.weight)
    torch.vcard.set_capacity(1, torch.vcard.memory_allocated(1) + (1 << 16))
    try:
        with pytest.raises(torch.OutOfMemoryError, match="vcard:1"):
            optimizers[model].step()
    finally:
        torch.vcard.set_capacity(1, 64 << 20)
    assert optimizers[model].param_groups[0]["params"] == [model.weight]
    assert isinstance(model.weight.grad, ShardedTensor)
    for m, optimizer in optimizers.items():
        optimizer.step()
        assert optimizer.state[m.weight]["step"].item() == 1.0
    torch.testing.assert_close(model.weight.cpu(), ordinary.weight)
