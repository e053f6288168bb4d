"""What the planner is told about a model: bytes by layer, tied weights, the order of calls, and a fingerprint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolrt.planning.profile import CallFacts
from poolrt.runtime.measuring.probe import Probed
from poolrt.runtime.measuring.profile_model import fingerprint, in_call_order, make_profile, weigh_layers
from poolrt.runtime.state.layers import Layer, find_layers

WIDTH = 128
SQUARE, ROW = WIDTH * WIDTH * 4, WIDTH * 4


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = linear(), linear(), linear(bias=False)
        self.third.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("table", torch.zeros(WIDTH))


def call(layer: str, nbytes: int = 0) -> CallFacts:
    return CallFacts(
        layer=layer, forward_s=1.0, backward_s=2.0, saved_nbytes=nbytes, forward_workspace_nbytes=0,
        backward_workspace_nbytes=0, output_nbytes=nbytes,
    )  # fmt: skip


# ---- bytes


def test_a_tied_parameter_is_counted_with_its_first_layer_only() -> None:
    model = Tied()
    facts, tied = weigh_layers(model, find_layers(model, 4))
    assert [(fact.name, fact.weight_nbytes) for fact in facts] == [
        (
            "first",
            SQUARE + ROW + 512 + ROW,
        ),  # with what is in no layer: a scalar, in a granule of its own, and a buffer
        ("second", SQUARE + ROW),
        ("third", 0),
    ]
    assert [(item.name, item.nbytes, item.layers) for item in tied] == [("first.weight", SQUARE, ("first", "third"))]


def test_the_sum_over_layers_is_the_model() -> None:
    model = Tied()
    facts, _ = weigh_layers(model, find_layers(model, 4))
    own = {id(t): t for t in (*model.parameters(), *model.buffers())}
    assert sum(fact.weight_nbytes for fact in facts) == sum(max(512, t.nbytes) for t in own.values())


def test_frozen_weights_and_buffers_are_not_trained() -> None:
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), linear())
    model[1].weight.requires_grad_(False)
    facts, tied = weigh_layers(model, find_layers(model, 2))
    norm, last = facts
    assert (norm.trainable_nbytes, norm.largest_gradient_nbytes) == (2 * ROW, ROW)
    assert norm.weight_nbytes == 4 * ROW + 512
    assert (last.trainable_nbytes, last.largest_gradient_nbytes) == (ROW, ROW)
    assert tied == ()


def test_small_tensors_take_a_granule() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    assert [fact.weight_nbytes for fact in weigh_layers(model, find_layers(model, 2))[0]] == [1024, 1024]


# ---- order


def test_layers_are_ordered_by_their_first_call() -> None:
    layers = [Layer(name, linear()) for name in "abcd"]
    probed = Probed([call("c"), call("a"), call("c"), call("d"), call("b")], 0)
    assert [layer.name for layer in in_call_order(layers, probed)] == ["c", "a", "d", "b"]


def test_a_layer_that_is_never_called_stays_behind_the_one_before_it() -> None:
    layers = [Layer(name, linear()) for name in ("unused", "a", "b", "spare", "c")]
    probed = Probed([call("b"), call("a"), call("c")], 0)
    assert [layer.name for layer in in_call_order(layers, probed)] == ["unused", "b", "spare", "a", "c"]


def test_a_profile_holds_what_was_measured() -> None:
    model = Tied()
    layers = find_layers(model, 4)
    probed = Probed([call("first", 8), call("second", 4)], output_nbytes=100)
    profile = make_profile(model, layers, probed, batch_size=6, input_nbytes=12, gathered=True)
    assert profile.model == fingerprint(model)
    assert (profile.batch_size, profile.input_nbytes) == (6, 12)
    assert (profile.output_nbytes, profile.gathered_nbytes) == (100, 100)
    assert [c.layer for c in profile.calls] == ["first", "second"]
    assert profile.layer("second").weight_nbytes == SQUARE + ROW
    assert make_profile(model, layers, probed, batch_size=6, input_nbytes=12, gathered=False).gathered_nbytes == 0


# ---- fingerprint


def test_a_fingerprint_does_not_depend_on_values() -> None:
    assert fingerprint(Tied()) == fingerprint(Tied())


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Sequential(linear(), linear()).double(),
        lambda: nn.Sequential(linear(), linear(bias=False)),
        lambda: nn.Sequential(linear(), nn.Linear(WIDTH, 1)),
        lambda: nn.ModuleList([linear(), linear()]),
    ],
    ids=["dtype", "names", "shape", "class"],
)
def test_what_changes_a_fingerprint(other: object) -> None:
    assert fingerprint(other()) != fingerprint(nn.Sequential(linear(), linear()))


def test_moving_a_model_does_not_change_its_fingerprint(devices: tuple[torch.device, torch.device]) -> None:
    model = nn.Sequential(linear(), linear())
    before = fingerprint(model)
    assert fingerprint(model.to(devices[1])) == before
