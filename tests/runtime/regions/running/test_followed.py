"""What is changed of a model after its layers were split reaches the cards' replicas, or is refused.

dropout.p = 1.0             nothing passes on any card, as in the whole model
layer.scale.fill_(0.5)      every card scales by it
layer.up = LoRA(...)        refused, until it is put back
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.runtime.state.trees import flatten

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[nn.Module], None]


class Config:
    """Numbers that a layer reads in its forward."""

    def __init__(self) -> None:
        self.heads, self.power = 4, 1.0


class Layer(nn.Module):
    """Heads of eight units, each turned by a number of its place, and what a user may change of it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.factor = 0.7
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.drop = nn.Dropout(0.0)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.up(x).unflatten(-1, (self.config.heads, -1))
        heads = torch.tanh(heads * self.scale) * heads.sum(-1, keepdim=True)
        return self.down(self.drop(heads.flatten(-2)) * self.factor * self.config.power)


class Model(nn.Module):
    """A layer, a table, and a module of torch's own with heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(8, 16)
        self.layer = Layer()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.double()

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        x = x + self.layer(x)
        return {"hidden": x + self.attention(x, x, x, need_weights=False)[0]}


def a_model() -> tuple[nn.Module, dict[str, Any]]:
    return Model(), {"ids": torch.arange(8).reshape(2, 4)}


def outputs(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.cpu() for tensor in flatten(model(**batch)).tensors]


def assert_follows(change: Change, made: Callable[[], tuple[nn.Module, dict[str, Any]]], split: Splitter) -> None:
    """Split and whole agree, both with the change; and it is one that matters."""
    whole, batch = made()
    before = outputs(whole, batch)
    change(whole)
    expected = outputs(whole, batch)
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(before, expected, strict=True))

    model, batch = made()
    on_cards = split(model, batch)
    outputs(model, on_cards.batch)
    change(model)
    for actual, wanted in zip(outputs(model, on_cards.batch), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def drops_everything(model: nn.Module) -> None:
    """At a rate of 1 nothing is left to chance."""
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0
        elif isinstance(module.__dict__.get("attention_dropout"), float):
            module.__dict__["attention_dropout"] = 1.0


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama-2", "t5", "encoder"])
def test_a_rate_of_dropout_reaches_every_card(name: str, split: Splitter):
    assert_follows(drops_everything, SPECIMENS[name].build, split)


CHANGES: dict[str, Change] = {
    "a number": lambda model: setattr(model.layer, "factor", 0.2),
    "a number of the config": lambda model: setattr(model.layer.config, "power", 0.2),
    "the rate of a dropout": drops_everything,
    "the rate of torch's attention": lambda model: setattr(model.train().attention, "dropout", 1.0),
    "a buffer in place": lambda model: model.layer.scale.fill_(0.1),
    "another buffer": lambda model: setattr(model.layer, "scale", torch.full_like(model.layer.scale, 0.1)),
    "a hook": lambda model: model.layer.drop.register_forward_hook(lambda module, args, output: output * 3) and None,
    "the largest norm of a row": lambda model: setattr(model.table, "max_norm", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_whole_changes_on_the_cards(change: str, split: Splitter):
    assert_follows(CHANGES[change], a_model, split)


def test_what_is_new_and_what_is_gone_is_followed(split: Splitter):
    model, batch = a_model()
    made = split(model, batch)
    replicas = made.installed.forwards["layer"].replicas
    model.layer.note = "new"
    outputs(model, made.batch)
    assert [replica.note for replica in replicas] == ["new", "new"]
    del model.layer.note
    outputs(model, made.batch)
    assert not any(hasattr(replica, "note") for replica in replicas)


REFUSED: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "heads": ("layer.config", "heads", lambda heads: heads // 2),
    "a module": ("layer", "up", lambda linear: nn.Sequential(linear)),
    "a weight": ("layer.up", "weight", lambda weight: nn.Parameter(weight.detach() * 2)),
    "the weight of torch's attention": ("attention", "in_proj_weight", lambda weight: nn.Parameter(weight.detach())),
    "a table": ("table", "weight", lambda weight: nn.Parameter(weight.detach())),
    "the size of a table": ("table", "num_embeddings", lambda rows: rows + 1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_pieces_depend_on_cannot_change(what: str, split: Splitter):
    path, name, changed = REFUSED[what]
    model, batch = a_model()
    made = split(model, batch)
    before = outputs(model, made.batch)
    owner = model.get_submodule("layer").config if path == "layer.config" else model.get_submodule(path)
    value = getattr(owner, name)
    setattr(owner, name, changed(value))
    for _ in range(2):
        with pytest.raises(ModelError, match=f"{path}.{name} was changed after the model was split .* put it back"):
            outputs(model, made.batch)
    setattr(owner, name, value)
    assert all(map(torch.equal, outputs(model, made.batch), before))


def test_an_equal_number_is_no_change(split: Splitter):
    model, batch = a_model()
    made = split(model, batch)
    before = outputs(model, made.batch)
    model.layer.config.heads = int("4")
    model.table.num_embeddings = copy.copy(model.table.num_embeddings)
    assert all(map(torch.equal, outputs(model, made.batch), before))
