"""A look at a model leaves no trace: what its forward changed is found, named, and put back bit by bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.state.model_state import GeneratorStates, ModelState, state_restored

Devices = tuple[torch.device, torch.device]


class Recorder(nn.Module):
    """Keeps things as attributes, in the ways that users do."""

    def __init__(self, remember: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.remembered = remember
        self.built = False
        self.names = ["a"]

    def forward(self, x: Tensor) -> Tensor:
        self.built = True
        self.remembered = self.change(x.mean())
        return x * self.weight

    def change(self, mean: Tensor) -> Any:
        kept = self.remembered
        if isinstance(kept, Tensor):
            return kept + mean
        if isinstance(kept, list):
            kept.append(mean)
        elif isinstance(kept, dict):
            kept["last"] = mean
        else:
            return kept + 1
        return kept


KINDS: dict[str, Any] = {
    "tensor": lambda: torch.zeros(()),
    "list": lambda: [torch.zeros(())],
    "empty list": list,
    "dict": lambda: {"last": torch.zeros(())},
    "counter": lambda: 0,
    "number": lambda: 1.5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_forward_keeps_is_named_and_put_back(kind: str) -> None:
    model = nn.Sequential(Recorder(KINDS[kind]()))
    kept = model[0].remembered
    before = ModelState(model)
    assert ModelState(model).changes_since(before) is None
    model(torch.full((2,), 3.0))
    assert ModelState(model).changes_since(before) == "0.remembered"
    before.restore()
    assert ModelState(model).changes_since(before) is None
    assert model[0].remembered is kept
    assert str(model[0].remembered) == str(KINDS[kind]())


class Context:
    def __init__(self) -> None:
        self.mask = torch.zeros(2)
        self.inner = [{"deep": self}, None]
        self.steps = 0


@pytest.mark.parametrize("hold", [lambda c: c, lambda c: [c], lambda c: {"a": (c,)}], ids=["itself", "list", "dict"])
def test_objects_that_modules_hold_are_looked_into(hold: Any) -> None:
    context = Context()
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].context = hold(context)
    before = ModelState(model)
    own = context.mask
    context.mask = torch.ones(2)
    context.steps += 1
    changed = ModelState(model).changes_since(before)
    assert changed.startswith("0.context")
    assert changed.endswith(("mask", "steps"))
    before.restore()
    assert context.mask is own
    assert context.steps == 0
    assert ModelState(model).changes_since(before) is None


def test_flags_of_what_was_done_once_stay() -> None:
    """transformers notes in a flag that hooks are installed; set back, they would be installed twice."""
    model = Recorder(0)
    before = ModelState(model)
    model(torch.ones(2))
    before.restore()
    assert model.built
    assert ModelState(model).changes_since(before) is None


def test_batch_norm_is_put_back_to_the_bit(devices: Devices) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).to(devices[1])
    model(torch.randn(8, 2, device=devices[1]))
    objects = dict(model.named_buffers())
    values = {name: buffer.cpu().clone() for name, buffer in objects.items()}
    with state_restored(model, devices):
        model(torch.randn(8, 2, device=devices[1]))
        assert not torch.equal(model[1].running_mean.cpu(), values["1.running_mean"])
    after = dict(model.named_buffers())
    assert all(after[name] is objects[name] for name in objects)
    assert all(torch.equal(after[name].cpu(), values[name]) for name in values)
    assert int(model[1].num_batches_tracked) == 1


def test_a_buffer_that_was_replaced_is_put_back() -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.zeros(2))
    own = model.mean
    before = ModelState(model)
    model.mean = torch.ones(3)
    assert ModelState(model).changes_since(before) == "mean"
    before.restore()
    assert model.mean is own
    assert list(dict(model.named_buffers())) == ["mean"]


def test_a_new_attribute_is_a_change() -> None:
    model = nn.Linear(1, 1)
    before = ModelState(model)
    model.last_input = torch.ones(1)
    assert ModelState(model).changes_since(before) == "last_input"


def test_differences_that_reordered_sums_explain_are_none() -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.tensor([1.0, float("nan")]))
    before = ModelState(model)
    model.mean.mul_(1 + 1e-7)
    assert ModelState(model).changes_since(before) is None
    model.mean.mul_(1 + 1e-4)
    assert ModelState(model).changes_since(before) == "mean"


def test_parameters_are_not_copied() -> None:
    """The state of a large model would not fit the host; a recurrent layer lists its parameters once more."""
    model = nn.LSTM(2, 2)
    before = ModelState(model)
    with torch.no_grad():
        model.weight_ih_l0.add_(1)
    assert ModelState(model).changes_since(before) is None
    before.restore()
    assert model._flat_weights[0] is model.weight_ih_l0


def test_everything_is_put_back_after_an_error() -> None:
    model = Recorder(torch.zeros(()))

    def fail() -> None:
        model(torch.ones(2))
        random.random()
        raise KeyError

    state = random.getstate()
    with pytest.raises(KeyError), state_restored(model, ()):
        fail()
    assert model.remembered.item() == 0
    assert random.getstate() == state


DRAWS = {
    "torch's generator of the host": lambda devices: torch.rand(()),
    "a card's generator": lambda devices: torch.rand((), device=devices[1]),
    "Python's random module": lambda devices: random.random(),
    "NumPy's global generator": lambda devices: np.random.rand(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_noticed_and_undone(name: str, devices: Devices) -> None:
    draw = DRAWS[name]
    before = GeneratorStates(devices)
    assert GeneratorStates(devices).first_difference(before) is None
    first = float(draw(devices))
    assert GeneratorStates(devices).first_difference(before) == name
    before.restore()
    assert GeneratorStates(devices).first_difference(before) is None
    assert float(draw(devices)) == first
