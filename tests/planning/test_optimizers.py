"""The table of optimizer costs against torch itself: state that stays, and temporaries of one foreach step."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from poolrt.errors import ConfigurationError
from poolrt.planning.optimizers import OPTIMIZERS, optimizer_cost

NUMEL = 256

MADE_BY = {
    "adam": lambda p: torch.optim.Adam(p, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, foreach=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, foreach=True),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, foreach=True),
    "radam": lambda p: torch.optim.RAdam(p, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "sgd-weight-decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, foreach=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd-momentum-weight-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, foreach=True),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, momentum=0.9, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, foreach=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, foreach=True),
}


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators make, except those that were there before."""

    def __init__(self, there):
        super().__init__()
        self.live = {}
        self.there = {tensor.untyped_storage()._cdata for tensor in there}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == NUMEL:
                self.follow(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self.live.values()))
        return made

    def follow(self, storage):
        key = storage._cdata
        if key not in self.there and key not in self.live:
            self.live[key] = storage.nbytes()
            weakref.finalize(storage, self.live.pop, key, None)


def state_tensors(optimizer):
    states = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in states if isinstance(value, torch.Tensor) and value.numel() == NUMEL]


@pytest.mark.parametrize("name", MADE_BY)
def test_the_table_says_what_torch_does(name):
    parameters = [torch.nn.Parameter(torch.randn(NUMEL)) for _ in range(3)]
    trainable = sum(x.numel() * x.element_size() for x in parameters)
    optimizer = MADE_BY[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.randn(NUMEL)
    optimizer.step()

    state = state_tensors(optimizer)
    with LiveBytes([*parameters, *(x.grad for x in parameters), *state]) as step:
        optimizer.step()

    cost = optimizer_cost(name)
    assert sum(x.numel() * x.element_size() for x in state) == cost.state * trainable
    assert step.peak == cost.temporaries * trainable
    assert cost.trains


def test_every_optimizer_of_the_table_is_checked_here():
    assert set(OPTIMIZERS) == {*MADE_BY, "none"}


def test_inference_keeps_and_needs_nothing():
    cost = optimizer_cost("none")
    assert (cost.state, cost.temporaries, cost.trains) == (0, 0, False)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigurationError) as refused:
        optimizer_cost("adamv")
    assert all(name in str(refused.value) for name in OPTIMIZERS)
