"""Measuring a model changes nothing about it, nor about the thread that asks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.measuring.measure import Measured, measure, to_layer
from poolrt.runtime.state.layers import Layer, find_layers
from poolrt.runtime.state.model_state import GeneratorStates


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Measured:
    layers = find_layers(model, at_least=2)
    return measure(model, model.forward, layers, (args, kwargs), batch_size=4, gathered=False, threads=1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 8)
        self.threads: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.threads.append(threading.current_thread().name)
        return self.head(self.drop(self.norm(x)))


def test_buffers_gradients_and_generators_stay() -> None:
    model, x = Model(), torch.randn(4, 8)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    generators = GeneratorStates(())
    profile = run(model, x).profile
    assert [call.layer for call in profile.calls] == ["norm", "head"]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert GeneratorStates(()).first_difference(generators) is None


def test_gradients_that_are_there_stay() -> None:
    model = Model()
    model.head.weight.grad = torch.full((8, 8), 2.0)
    run(model, torch.randn(4, 8))
    assert model.head.weight.grad.unique().tolist() == [2.0]
    assert model.head.bias.grad is None


def test_the_probe_runs_in_a_thread_of_its_own_that_ends() -> None:
    names: list[str] = []

    class Naming(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            names.append(threading.current_thread().name)
            return super().forward(x)

    before, threads = set(threading.enumerate()), torch.get_num_threads()
    model = nn.Sequential(Naming(8, 8), Naming(8, 8))
    run(model, torch.randn(4, 8))
    assert set(names) == {"probe"}
    assert set(threading.enumerate()) == before
    assert torch.get_num_threads() == threads


def test_an_error_comes_out_as_itself() -> None:
    class Failing(Model):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("mine")

    model = Failing()
    mean = model.norm.running_mean.clone()
    with pytest.raises(KeyError, match="mine"):
        run(model, torch.randn(4, 8))
    assert torch.equal(model.norm.running_mean, mean)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_measures_training_whatever_the_caller_does(mode: Any) -> None:
    """A model that is evaluated first may be trained later."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with mode():
        profile = run(model, torch.randn(4, 8)).profile
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert all(call.backward_s > 0 for call in profile.calls)
    assert profile.calls[0].saved_nbytes > 0


def test_autocast_is_carried_along() -> None:
    seen: list[torch.dtype] = []

    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(nn.Sequential(Looking(8, 8), Looking(8, 8)), torch.randn(4, 8))
    assert set(seen) == {torch.bfloat16}


def test_a_batch_with_history_keeps_it() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    run(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), x * 1)
    assert x.grad is None


def test_a_layer_that_is_reached_past_is_opened() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.deep = nn.Module()
            self.inner.deep.a, self.inner.deep.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.deep.b(self.inner.deep.a(x))

    measured = run(Around(), torch.randn(4, 8))
    assert [layer.name for layer in measured.layers] == ["inner.deep.a", "inner.deep.b"]
    assert [layer.name for layer in measured.profile.layers] == ["inner.deep.a", "inner.deep.b"]


def test_layers_come_in_the_order_of_their_calls() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    assert [layer.name for layer in run(Reversed(), torch.randn(4, 8)).layers] == ["first", "last"]


def test_bytes_of_the_batch() -> None:
    profile = run(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(4, 8)).profile
    assert (profile.batch_size, profile.input_nbytes) == (4, 4 * 8 * 4)


def test_values_are_brought_to_the_layer(devices: tuple[torch.device, torch.device]) -> None:
    layer = Layer("a", nn.Linear(2, 2).to(devices[1]))
    moved = to_layer(layer.module, [torch.ones(2), {"n": 1}])
    assert moved[0].device == devices[1]
    assert moved[1] == {"n": 1}
