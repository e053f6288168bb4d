"""May a batch be cut? What splitting would change is refused, with a reason; what it would not is let through."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.batches.microbatch import Call, OutputRule
from poolrt.runtime.lanes.hooks import hooked
from poolrt.runtime.lanes.machine import Machine
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.measuring.measure import to_layer
from poolrt.runtime.measuring.split_check import Verdict, check_split
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.state.layers import find_layers
from poolrt.runtime.state.model_state import GeneratorStates, ModelState

Devices = tuple[torch.device, torch.device]
WIDTH = 4


class Model(nn.Module):
    """Two layers on two cards; `body` is the code of the user around them."""

    def __init__(self, body: Callable[[Model, Tensor], Any], middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.middle = middle or nn.Tanh()
        self.second = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.log: list[Tensor] = []
        self.context = Context()
        self.body = body

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Any:
        return self.body(self, self.second(self.middle(self.first(x))), *more, **options)


def machine_for(model: nn.Module, devices: Devices) -> tuple[Machine, CardOrders]:
    layers = find_layers(model, at_least=4)
    cards = {layer.name: min(index, 1) for index, layer in enumerate(layers)}
    placement = Placement(model, layers, cards, devices)
    placement.apply()
    return Machine(placement, model.forward, threads_per_lane=1), CardOrders((0, 1) if len(layers) > 1 else (0,))


def judge(model: nn.Module, devices: Devices, *args: Any, parts: int = 3, batch_dim: int = 0, **kwargs: Any) -> Verdict:
    return check(*machine_for(model, devices), (args, kwargs), parts, batch_dim)


def check(machine: Machine, orders: CardOrders, call: Call, parts: int, batch_dim: int = 0) -> Verdict:
    call = machine.placement.to_first_card(call)
    with hooked(machine.placement.layers, to_layer):
        return check_split(machine, call, {n: orders.of(n)[0] for n in (1, parts)}, parts, batch_dim)


def batch(rows: int = 7) -> Tensor:
    return torch.randn(rows, WIDTH)


def labels(rows: int = 7) -> Tensor:
    return torch.arange(rows) % WIDTH


# ---- let through


def test_outputs_per_sample_are_concatenated(devices: Devices) -> None:
    verdict = judge(Model(lambda m, h: {"logits": h, "both": (h, h.t())}), devices, batch())
    assert verdict == Verdict(
        rules=(OutputRule("concatenate", 0), OutputRule("concatenate", 0), OutputRule("concatenate", 1))
    )


def test_a_loss_is_a_scalar(devices: Devices) -> None:
    model = Model(lambda m, h, y: (F.cross_entropy(h, y), h))
    verdict = judge(model, devices, batch(), labels())
    assert verdict.rules == (OutputRule("scalar"), OutputRule("concatenate", 0))


def test_a_loss_inside_a_layer_is_watched_from_then_on(devices: Devices) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.linear(h), y)

    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), Head()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.body(x), y)

    model = WithHead()
    machine, orders = machine_for(model, devices)
    verdict = check(machine, orders, ((batch(), labels()), {}), parts=3)
    assert verdict.rules == (OutputRule("scalar"),)
    assert machine.watched == {model.head}
    assert not machine.watch_all


def test_what_does_not_depend_on_the_batch_is_the_same(devices: Devices) -> None:
    verdict = judge(Model(lambda m, h: {"out": h, "weight": m.first.weight * 2, "n": 3}), devices, batch())
    assert verdict.rules == (OutputRule("concatenate", 0), OutputRule("same"))


def test_dropout_is_no_obstacle(devices: Devices) -> None:
    assert judge(Model(lambda m, h: h, nn.Dropout(0.5)), devices, batch()).why_not == ""


def test_batch_in_another_dimension(devices: Devices) -> None:
    verdict = judge(Model(lambda m, h: h), devices, torch.randn(2, 6, WIDTH), batch_dim=1)
    assert verdict.rules == (OutputRule("concatenate", 1),)


def test_rows_chosen_from_each_part(devices: Devices) -> None:
    verdict = judge(Model(lambda m, h, keep: h[keep]), devices, batch(), torch.arange(7) % 2 == 0)
    assert verdict.rules == (OutputRule("concatenate", 0),)


# ---- refused


def in_batch_contrast(m: Model, h: Tensor) -> Tensor:
    return F.cross_entropy(h @ h.t(), torch.arange(len(h), device=h.device))


def counter(m: Model, h: Tensor) -> Tensor:
    m.calls += 1
    return h


def diary(m: Model, h: Tensor) -> Tensor:
    m.log.append(h.mean().detach())
    return h


def running_mean(m: Model, h: Tensor) -> Tensor:
    m.seen.mul_(0.9).add_(h.detach().mean().to(m.seen.device))
    return h


def kept_activation(m: Model, h: Tensor) -> Tensor:
    m.last = h.detach()
    return h


def passing_mask(m: Model, h: Tensor) -> Tensor:
    m.mask = (h > 0).to(h.dtype)
    h = m.second(h) * m.mask
    m.mask = None
    return h


def passing_attribute(m: Model, h: Tensor) -> Tensor:
    m.second.scale = h.detach().abs().sum(-1, keepdim=True)
    h = m.second(h) * m.second.scale
    del m.second.scale
    return h


class Context:
    mask: Tensor | None = None


def object_with_mask(m: Model, h: Tensor) -> Tensor:
    m.context.mask = (h > 0).to(h.dtype)
    return m.second(h) * m.context.mask


def draw_on_the_card(m: Model, h: Tensor) -> Tensor:
    return h + torch.rand((), device=h.device)


def python_draw(m: Model, h: Tensor) -> Tensor:
    return h if random.random() < 2 else -h


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "in-batch contrast": (in_batch_contrast, "differs"),
    "similarities": (lambda m, h: h @ h.t(), "not a value per sample"),
    "batch statistics": (lambda m, h: h - h.mean(0, keepdim=True), "differs"),
    "softmax over samples": (lambda m, h: h.softmax(0), "differs"),
    "mean over samples first": (lambda m, h: h.mean(0).mean(), "made otherwise"),
    "one vector for the batch": (lambda m, h: h.sum(0), "not a value per sample"),
    "zero over the batch's size": (lambda m, h: (h * 0).sum() / len(h), "made otherwise"),
    "root of a mean": (lambda m, h: h.pow(2).mean().sqrt(), "neither a mean nor a sum"),
    "sum over the batch's size": (lambda m, h: h.sum() / len(h), "made otherwise"),
    "a number as output": (lambda m, h: (h, h.mean().item()), "is no tensor"),
    "a size as output": (lambda m, h: {"out": h, "n": len(h)}, "is no tensor"),
    "one tensor per sample": (lambda m, h: list(h), "another number of tensors"),
    "a counter": (counter, "'calls' is changed"),
    "a list that grows": (diary, "'log' is changed"),
    "a buffer": (running_mean, "'seen' is changed"),
    "an activation kept": (kept_activation, "'last' is changed"),
    "a mask kept for a while": (passing_mask, "'mask' holds a tensor while"),
    "an attribute of a layer": (passing_attribute, "'second.scale' holds a tensor while"),
    "a mask in an object": (object_with_mask, "'context.mask' is changed"),
    "noise": (draw_on_the_card, "draws random numbers from a card's generator"),
    "Python's random": (python_draw, "Python's random module"),
    "positions by the batch's size": (
        lambda m, h: h + torch.arange(7, device=h.device)[:, None],
        "fails: RuntimeError",
    ),
    "order of samples": (lambda m, h: h.flip(0), "differs"),
    "sorted samples": (lambda m, h: h.sort(0).values, "differs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_splitting_would_change_is_refused_with_a_reason(name: str, devices: Devices) -> None:
    body, reason = REFUSED[name]
    verdict = judge(Model(body), devices, batch())
    assert reason in verdict.why_not
    assert verdict.rules == ()
    assert "\n" not in verdict.why_not


def test_batch_norm_is_refused(devices: Devices) -> None:
    assert judge(Model(lambda m, h: h, nn.BatchNorm1d(WIDTH)), devices, batch(9)).why_not
    frozen = Model(lambda m, h: h, nn.BatchNorm1d(WIDTH)).eval()
    assert judge(frozen, devices, batch(9)).why_not == ""


def test_a_time_first_batch_cut_in_the_wrong_dimension_is_refused(devices: Devices) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0))
    assert "differs" in judge(model, devices, torch.randn(6, 3, WIDTH)).why_not


def test_a_forward_that_wants_gradients_stays_whole(devices: Devices) -> None:
    """Forces are gradients of an energy: without gradients the check cannot run."""

    def forces(m: Model, h: Tensor) -> Tensor:
        return torch.autograd.grad(h.sum(), m.second.bias)[0]

    assert "without gradients: RuntimeError" in judge(Model(forces), devices, batch()).why_not


# ---- no trace


@pytest.mark.parametrize("body", [counter, diary, running_mean, kept_activation, python_draw, draw_on_the_card])
def test_the_check_leaves_no_trace(body: Callable[..., Any], devices: Devices) -> None:
    model, x = Model(body), batch()
    machine_for(model, devices)
    state, generators = ModelState(model), GeneratorStates(devices)
    judge(model, devices, x)
    assert (model.calls, model.log, model.seen.item()) == (0, [], 0.0)
    assert ModelState(model).changes_since(state) in (None, "last")
    assert GeneratorStates(devices).first_difference(generators) is None
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_check_that_does_not_fit_tries_half_the_batch(devices: Devices) -> None:
    sizes: list[int] = []

    def hungry(m: Model, h: Tensor) -> Tensor:
        sizes.append(len(h))
        if len(h) > 4:
            raise torch.OutOfMemoryError("vcard:1 is out of memory")
        return h

    assert judge(Model(hungry), devices, batch(8), parts=2).why_not == ""
    assert sizes[0] == 8
    assert sizes[1] == 4


def test_out_of_memory_with_the_smallest_batch_is_the_callers(devices: Devices) -> None:
    def starving(m: Model, h: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("vcard:1 is out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        judge(Model(starving), devices, batch(8), parts=2)
