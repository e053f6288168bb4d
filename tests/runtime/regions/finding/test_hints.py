"""A model's own plan for tensor parallelism says where to look first; what is there is found and proven all the same.

A hint that is right saves questions; one that is wrong costs some.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runtime.regions.specimens import SPECIMENS
from torch import Tensor, nn

from poolrt.runtime.regions.finding import needs
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.finding.hints import row_hints
from poolrt.runtime.regions.plan import RegionPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def plan_for(model: nn.Module, batch: dict[str, Any]) -> RegionPlan:
    return find_regions(model, lambda: model(**batch), [1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "module", "expected"),
    [
        ("llama-4", "model.layers.1.self_attn", ("o_proj.weight",)),
        ("phi3", "model.layers.0.mlp", ("down_proj.weight",)),
        ("mixtral", "model.layers.1.mlp.experts", ("down_proj",)),
        ("gpt-neox", "gpt_neox.layers.0.attention", ("dense.weight",)),
        ("bert", "bert.encoder.layer.0.attention.self", ()),
    ],
)
def test_what_transformers_says(name: str, module: str, expected: tuple[str, ...]):
    model, _ = SPECIMENS[name].build()
    assert row_hints(model, module, dict(model.get_submodule(module).named_parameters())) == expected


class Unusual(nn.Module):
    """A gated unit that registers what comes last first."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.gate, self.up = nn.Linear(12, 6), nn.Linear(6, 12), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x).sigmoid() * self.up(x))


class Model(nn.Module):
    """One such unit, with a plan that may say anything."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.layers, self.tp_plan = nn.ModuleList([Unusual()]), plan

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[0](x)


def asked_for(plan: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], RegionPlan]:
    """Which weights are asked whether they are a row weight, in order; and what is found."""
    asked: list[str] = []
    question = needs._is_sum_of_parts
    with monkeypatch.context() as patched:
        patched.setattr(needs, "_is_sum_of_parts", lambda probe, row: asked.append(row.name) or question(probe, row))
        found = plan_for(Model(plan), {"x": torch.randn(5, 6)})
    return asked, found


def test_a_right_hint_is_asked_first_and_saves_the_other_questions(monkeypatch: pytest.MonkeyPatch):
    without, found = asked_for(None, monkeypatch)
    with_hint, same = asked_for({"layers.*.down": "rowwise", "layers.*.up": "colwise"}, monkeypatch)
    assert with_hint == ["down.weight"]
    assert len(without) > len(with_hint)
    assert found.splits == same.splits
    assert len(found.regions) == 1


WRONG = [
    {"layers.*.gate": "rowwise", "layers.*.up": "rowwise"},
    {"layers.*.down": "colwise"},
    {"layers.*": "rowwise", "nothing.there": "rowwise", 3: None},
    ["no", "plan"],
]


@pytest.mark.parametrize("wrong", WRONG, ids=["columns for rows", "rows for columns", "names of nothing", "no mapping"])
def test_a_wrong_hint_does_no_harm(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    _, expected = asked_for(None, monkeypatch)
    _, found = asked_for(wrong, monkeypatch)
    assert found.splits == expected.splits
    assert [region.rewrites for region in found.regions] == [region.rewrites for region in expected.regions]


@pytest.mark.parametrize("name", ["llama-4", "phi3", "mixtral"])
def test_a_wrong_hint_of_a_whole_family_does_no_harm(name: str, monkeypatch: pytest.MonkeyPatch):
    model, batch = SPECIMENS[name].build()
    expected = plan_for(model, batch)
    wrong = {key: "rowwise" if "col" in style else "colwise" for key, style in model.tp_plan.items()}
    monkeypatch.setattr(type(model), "tp_plan", property(lambda self: wrong))
    assert plan_for(model, batch).splits == expected.splits
