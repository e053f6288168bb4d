"""Tensors that a forward keeps for a while on its modules are noticed; the class of all modules stays as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from poolrt.runtime.state.attribute_watch import attributes_watched


def test_a_tensor_that_comes_and_goes_is_named() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with attributes_watched() as watch:
        model[1].mask = torch.ones(1)
        model[1].mask = None
    assert watch.gone(model) == "1.mask"
    assert watch.gone(model[1]) == "mask"
    assert watch.gone(model[0]) is None


def test_a_tensor_that_is_deleted_is_gone() -> None:
    model = nn.Linear(1, 1)
    with attributes_watched() as watch:
        model.mask = torch.ones(1)
        del model.mask
    assert watch.gone(model) == "mask"


def test_what_stays_is_left_to_the_comparison_of_states() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mean", torch.zeros(1))
    with attributes_watched() as watch:
        model.mask = torch.ones(1)
        model.mean = torch.ones(1)
        model.flag = True
        model.flag = None
        model.extra = nn.Parameter(torch.ones(1))
        model.extra = None
    assert watch.gone(model) is None


def test_modules_set_attributes_as_before_afterwards() -> None:
    before = nn.Module.__setattr__
    with attributes_watched():
        assert nn.Module.__setattr__ is not before
    with pytest.raises(KeyError), attributes_watched():
        raise KeyError
    assert nn.Module.__setattr__ is before


def test_two_at_once_take_turns() -> None:
    before = nn.Module.__setattr__
    together = threading.Barrier(3)

    def work() -> None:
        together.wait(timeout=30)
        for _ in range(20):
            with attributes_watched() as watch:
                model = nn.Linear(1, 1)
                model.mask = torch.ones(1)
                model.mask = None
            assert watch.gone(model) == "mask"

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__setattr__ is before
