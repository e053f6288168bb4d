"""The two hooks on a layer ask the thread's walker; without one they only bring the arguments."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.lanes.hooks import hook_layers, hooked
from poolrt.runtime.lanes.lane import current
from poolrt.runtime.measuring.measure import to_layer
from poolrt.runtime.state.layers import Layer


class Diary:
    """A walker that writes down what it is told, and doubles what goes in and out."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def before(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        self.events.append(("before", layer))
        return tuple(2 * arg for arg in args), kwargs

    def after(self, layer: nn.Module, output: Any) -> Any:
        self.events.append(("after", layer, output is not None))
        return None if output is None else 2 * output


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        if shift > 10:
            raise ValueError("too far")
        return x * self.weight + shift


def named_layer() -> Layer:
    return Layer("only", Named())


def test_a_walker_is_told_and_may_change_what_goes_in_and_out() -> None:
    layer = named_layer()
    diary = Diary()
    with hooked([layer], to_layer):
        current.walker = diary
        try:
            output = layer.module(torch.ones(1), shift=1.0)
        finally:
            current.walker = None
    assert output.item() == 6.0
    assert diary.events == [("before", layer.module), ("after", layer.module, True)]


def test_a_walker_hears_of_a_layer_that_failed() -> None:
    layer = named_layer()
    diary = Diary()
    with hooked([layer], to_layer):
        current.walker = diary
        try:
            with pytest.raises(ValueError, match="too far"):
                layer.module(torch.ones(1), shift=11.0)
        finally:
            current.walker = None
    assert diary.events[-1] == ("after", layer.module, False)


def test_each_thread_has_its_own_walker() -> None:
    layer = named_layer()
    diary = Diary()
    current.walker = diary
    try:
        with hooked([layer], to_layer):
            thread = threading.Thread(target=lambda: layer.module(torch.ones(1)))
            thread.start()
            thread.join()
    finally:
        current.walker = None
    assert diary.events == []


def test_without_a_walker_arguments_are_brought_to_the_layer(devices: Any) -> None:
    """A user may call one layer by itself: model.head(hidden)."""
    layer = named_layer()
    layer.module.to(devices[1])
    with hooked([layer], to_layer):
        output = layer.module(torch.ones(1), shift=2.0)
    assert output.device == devices[1]
    assert output.item() == 3.0
    assert to_layer(layer.module, {"x": torch.ones(1)})["x"].device == devices[1]


def test_hooks_can_be_removed() -> None:
    layer = named_layer()
    handles = hook_layers([layer], to_layer)
    assert layer.module._forward_hooks
    for handle in handles:
        handle.remove()
    assert not layer.module._forward_hooks
    assert not layer.module._forward_pre_hooks
    assert not layer.module._forward_hooks_always_called


def test_hooks_are_gone_after_an_error() -> None:
    layer = named_layer()
    with pytest.raises(KeyError), hooked([layer], to_layer):
        raise KeyError
    assert not layer.module._forward_hooks


def test_the_users_own_hooks_see_what_arrives_on_the_card(devices: Any) -> None:
    layer = named_layer()
    layer.module.to(devices[1])
    seen: list[torch.device] = []
    layer.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].device))
    with hooked([layer], to_layer):
        layer.module(torch.ones(1))
    assert seen == [devices[1]]
