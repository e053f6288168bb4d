"""When what was proven for one layer holds for another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolrt.runtime.regions.finding.alike import are_alike, are_called_alike
from poolrt.runtime.regions.finding.attributes import Attribute


class Layer(nn.Module):
    def __init__(self, index: int = 0, scale: float = 1.0, width: int = 4, shared: object = "shared") -> None:
        super().__init__()
        self.index, self.scale, self.shared = index, scale, shared
        self.linear = nn.Linear(width, 4)


READ = [Attribute("", False, "index", 0)]


def test_values_of_weights_do_not_matter():
    assert are_alike(Layer(), Layer(), READ)


def test_a_number_matters_where_it_is_read():
    assert are_alike(Layer(index=0), Layer(index=1), [])
    assert not are_alike(Layer(index=0), Layer(index=1), READ)


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None


@pytest.mark.parametrize(
    "other",
    [
        Layer(scale=2.0),
        Layer(width=5),
        Layer(shared="other"),
        nn.Linear(4, 4),
        Layer().double(),
    ],
)
def test_everything_else_does(other: nn.Module):
    assert not are_alike(Layer(), other, READ)


def test_what_cannot_be_compared_is_another():
    assert not are_alike(Layer(shared=Incomparable()), Layer(shared=Incomparable()), READ)
    same = Incomparable()
    assert are_alike(Layer(shared=same), Layer(shared=same), READ)


def test_a_layer_with_another_attribute_or_module_is_another():
    more = Layer()
    more.extra = 1
    assert not are_alike(Layer(), more, [])
    deeper = Layer()
    deeper.linear = nn.Sequential(nn.Linear(4, 4))
    assert not are_alike(Layer(), deeper, [])


def test_calls_agree_in_shapes_and_constants():
    x = torch.zeros(2, 3)
    call = ((x,), {"mask": None, "causal": True, "cos_sin": (x, x)})
    assert are_called_alike(call, ((x + 1,), {"mask": None, "causal": True, "cos_sin": (x, x)}))
    assert not are_called_alike(call, ((x,), {"mask": x, "causal": True, "cos_sin": (x, x)}))
    assert not are_called_alike(call, ((x,), {"mask": None, "causal": False, "cos_sin": (x, x)}))
    assert not are_called_alike(call, ((x[:1],), {"mask": None, "causal": True, "cos_sin": (x, x)}))
