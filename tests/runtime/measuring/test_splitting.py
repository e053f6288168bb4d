"""Into how many parts a batch is cut: decided once per form of batch, and taken back where it does not hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.lanes.hooks import hook_layers
from poolrt.runtime.lanes.machine import Machine
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.measuring.measure import to_layer
from poolrt.runtime.measuring.splitting import Cut, Splitting, SplitWarning
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.state.layers import find_layers

Devices = tuple[torch.device, torch.device]


class Model(nn.Module):
    def __init__(self, body: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = body
        self.forwards = 0

    def forward(self, x: Tensor, state: Any = None) -> Any:
        type(self).forwards += 1
        return self.body(self.second(self.first(x)))


def splitting_of(devices: Devices, micro_batches: int, body: Callable[[Tensor], Any] = lambda h: h) -> Splitting:
    Model.forwards = 0
    model = Model(body)
    placement = Placement(model, find_layers(model, 4), {"first": 0, "second": 1}, devices)
    placement.apply()
    hook_layers(placement.layers, to_layer)
    splitting = Splitting(0)
    splitting.adopt(Machine(placement, model.forward, 1), CardOrders((0, 1)), micro_batches)
    return splitting


def batch(rows: int, **more: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(rows, 4),), more


def test_a_batch_is_cut_as_planned(devices: Devices) -> None:
    cut = splitting_of(devices, 3).cut(batch(7))
    assert cut.parts == 3
    assert [rule.kind for rule in cut.rules] == ["concatenate"]


def test_without_micro_batches_nothing_is_checked(devices: Devices) -> None:
    splitting = splitting_of(devices, 1)
    assert splitting.cut(batch(7)) == Cut(1)
    assert Model.forwards == 0


def test_one_check_serves_all_batches_of_a_form(devices: Devices) -> None:
    splitting = splitting_of(devices, 2)
    splitting.cut(batch(6))
    checked = Model.forwards
    splitting.cut(batch(5))
    assert Model.forwards == checked == 3
    splitting.cut(((torch.randn(6, 3, 4),), {}))
    assert Model.forwards > checked


def test_a_small_batch_is_cut_into_fewer_parts_and_says_so_once(devices: Devices) -> None:
    splitting = splitting_of(devices, 4)
    with pytest.warns(SplitWarning, match="a batch of 3 cannot be cut into 4"):
        assert splitting.cut(batch(3)).parts == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert splitting.cut(batch(3)).parts == 3


def test_a_single_sample_stays_whole(devices: Devices) -> None:
    splitting = splitting_of(devices, 2)
    with pytest.warns(SplitWarning, match="a batch of 1"):
        assert splitting.cut(batch(1)) == Cut(1)
    assert Model.forwards == 0


def test_a_batch_with_a_state_of_its_own_stays_whole(devices: Devices) -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys = torch.ones(2)

    splitting = splitting_of(devices, 2)
    assert splitting.cut(batch(6, state=Cache())) == Cut(1)
    assert "state of its own" in splitting.verdict(batch(6, state=Cache())).why_not
    assert splitting.cut(batch(6)).parts == 2


def test_a_form_that_may_not_be_cut_stays_whole(devices: Devices) -> None:
    splitting = splitting_of(devices, 2, lambda h: h - h.mean(0))
    assert splitting.cut(batch(6)) == Cut(1)
    assert "differs" in splitting.verdict(batch(6)).why_not


def test_after_some_batches_that_cannot_be_merged_all_like_them_stay_whole(devices: Devices) -> None:
    splitting = splitting_of(devices, 2)
    for attempt in range(3):
        assert splitting.cut(batch(6)).parts == 2
        with pytest.warns(SplitWarning, match=f"whole.*reason {attempt}"):
            splitting.failed(batch(6), f"reason {attempt}")
    assert splitting.cut(batch(6)) == Cut(1)
    assert splitting.verdict(batch(6)).why_not == "reason 2"
    assert splitting.cut(((torch.randn(6, 3, 4),), {})).parts == 2
