"""`tensor_parallel` left open: whether layers are split is decided after measuring, and the model stays the user's.

    whole layers fit      as they were placed for measuring
    split is better       back to where they came from -> found and proven there -> pieces on the cards

Where a test needs the decision to fall one way, memory decides, or the part of the time that a split step may take.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.errors import InfeasibleError
from poolrt.planning import choose
from poolrt.planning.plan import Plan
from poolrt.runtime import split_layers
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.topology.topology import Topology

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 64


def wide(normalised: bool = False, inner: int = 16 * WIDTH, outputs: int = WIDTH) -> nn.Module:
    """Two layers that belong together."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(WIDTH)] if normalised else []
    return nn.Sequential(*norm, nn.Linear(WIDTH, inner), nn.ReLU(), nn.Linear(inner, outputs)).double()


def lopsided() -> nn.Module:
    """The first layer has 1 MiB of weights; with gradients, state and its temporaries, 5 MiB."""
    return wide(inner=32 * WIDTH, outputs=4)


def batch() -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cards(memory: str = "64MiB", count: int = 2) -> Topology:
    return poolrt.virtual(cards=count, memory=memory)


def assert_trains_alike(model: nn.Module, reference: nn.Module, steps: int = 3) -> None:
    """Outputs and, after a few steps of AdamW, weights and buffers."""
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-3) for one in (model, reference)]
    for _ in range(steps):
        outputs = [one(batch()) for one in (model, reference)]
        assert torch.allclose(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    for (name, value), expected in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(value.cpu(), expected, rtol=1e-9, atol=1e-12), name


def plan_of(model: nn.Module) -> Plan:
    return poolrt.report(model).plan


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch):
    """Seconds count, and however slow a split step is predicted to be, it is taken."""
    monkeypatch.setattr(split_layers, "seconds_are_of_cards", lambda model, topology: True)
    monkeypatch.setattr(choose, "WORTH", 1e9)


@pytest.fixture
def reluctant(monkeypatch: pytest.MonkeyPatch):
    """Seconds count, and however fast a split step is predicted to be, it is not taken if whole layers fit."""
    monkeypatch.setattr(split_layers, "seconds_are_of_cards", lambda model, topology: True)
    monkeypatch.setattr(choose, "WORTH", 0.0)


@pytest.mark.parametrize("with_sample", [True, False], ids=["sample", "first batch"])
def test_what_fits_no_card_whole_is_split(with_sample: bool):
    model, reference = lopsided(), lopsided()
    topology = cards("4MiB")
    poolrt.shard(model, topology=topology, sample=batch() if with_sample else None, spill="never")
    model(batch())
    plan = plan_of(model)
    assert plan.stages == ((0, 1),)
    assert any(note.startswith("Layers are split over cards 0, 1:") for note in plan.notes)
    assert any(isinstance(parameter, ShardedParameter) for parameter in model.parameters())
    assert_trains_alike(model, reference)


def test_a_layer_of_one_and_a_half_cards_is_split_and_spills():
    """Each card has 3/4 of it and as much of gradients: what is too much lies on the host."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 12288))
    reference, x = copy.deepcopy(model), torch.randn(4, 512)
    poolrt.shard(model, topology=poolrt.virtual(cards=2, memory=16 << 20), sample=x, optimizer="sgd")
    plan = plan_of(model)
    assert (plan.stages, plan.spills) == (((0, 1),), True)
    assert any("whole layers too large for the cards" in note for note in plan.notes)
    for one in (model, reference):
        one(x).square().mean().backward()
        torch.optim.SGD(one.parameters(), lr=0.1).step()
    assert torch.allclose(model[0].weight.detach().cpu(), reference[0].weight.detach(), rtol=1e-6, atol=1e-7)


def test_who_asks_for_whole_layers_is_told_that_they_do_not_fit():
    model = lopsided()
    with pytest.raises(InfeasibleError, match="too little"):
        poolrt.shard(model, topology=cards("4MiB"), sample=batch(), spill="never", tensor_parallel=1)
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in model.parameters())


def test_nothing_is_looked_for_where_whole_layers_are_kept(reluctant: None, monkeypatch: pytest.MonkeyPatch):
    looked: list[object] = []
    monkeypatch.setattr("poolrt.runtime.split_layers.regions_of", lambda *args: looked.append(args))
    model, reference = wide(), wide()
    poolrt.shard(model, topology=cards(), sample=batch())
    assert plan_of(model).stages == ()
    assert any("Layers stay whole:" in note for note in plan_of(model).notes)
    assert looked == []
    assert_trains_alike(model, reference)


def test_seconds_of_virtual_cards_do_not_count(monkeypatch: pytest.MonkeyPatch):
    """They are the host's, however its cores are shared: the choice must not hang on them."""
    monkeypatch.setattr(choose, "WORTH", 1e9)
    model = wide()
    poolrt.shard(model, topology=cards(), sample=batch()[:1])
    assert plan_of(model).stages == ()
    assert not any(note.startswith("Layers") for note in plan_of(model).notes), "nothing was compared"


def test_a_model_that_cannot_be_split_keeps_whole_layers(eager: None):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.LayerNorm(WIDTH) for _ in range(4))).double()
    reference = copy.deepcopy(model)
    poolrt.shard(model, topology=cards(), sample=batch())
    assert plan_of(model).stages == ()
    assert any("no layer of the model can be" in note for note in plan_of(model).notes)
    assert_trains_alike(model, reference)


def test_a_plan_moves_nothing_and_is_carried_out(eager: None):
    model, reference = wide(), wide()
    topology = cards()
    held = [torch.vcard.memory_allocated(card) for card in range(2)]
    plan = poolrt.plan(model, batch(), topology)
    assert plan.stages == ((0, 1),)
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in model.parameters())
    assert [torch.vcard.memory_allocated(card) for card in range(2)] == held
    poolrt.shard(model, topology=topology, sample=batch(), plan=Plan.from_json(plan.to_json()))
    assert plan_of(model) == plan
    assert_trains_alike(model, reference)


def test_a_batch_that_turns_out_to_be_whole_is_decided_about_anew(monkeypatch: pytest.MonkeyPatch):
    """BatchNorm: cut in the first plan, seen to be wrong by the check, split in the second."""
    asked: list[bool] = []
    monkeypatch.setattr(split_layers, "seconds_are_of_cards", lambda model, topology: True)

    def wanted(profile, topology, facts_of, **options):
        asked.append(options["splittable"])
        monkeypatch.setattr(choose, "WORTH", 0.0 if options["splittable"] else 1e9)
        return choose.choose_stages(profile, topology, facts_of, **options)

    monkeypatch.setattr("poolrt.runtime.split_layers.choose_stages", wanted)
    monkeypatch.setattr("poolrt.planning.planner.NEAR_TIE", 0.0)
    monkeypatch.setattr("poolrt.planning.planner._least_split_of_the_fastest", lambda found: found[-1])
    model, reference = wide(normalised=True), wide(normalised=True)
    with pytest.warns(UserWarning, match="stays whole"):
        poolrt.shard(model, topology=cards(), sample=batch())
    assert asked == [True, False]
    assert plan_of(model).stages == ((0, 1),)
    assert plan_of(model).micro_batches == 1
    assert_trains_alike(model, reference)


def test_a_copy_of_a_model_that_was_split_is_split_alike(eager: None):
    model, reference = wide(), wide()
    poolrt.shard(model, topology=cards(), sample=batch())
    twin = copy.deepcopy(model)
    assert plan_of(twin).stages == ((0, 1),)
    assert_trains_alike(twin, reference)


@pytest.mark.parametrize("options", [{"micro_batches": 1}, {"spill": "1GiB"}, {"tensor_parallel": 1}])
def test_who_says_how_it_is_to_be_has_whole_layers(eager: None, options: dict[str, object]):
    model = wide()
    poolrt.shard(model, topology=cards(), sample=batch(), **options)
    assert plan_of(model).stages == ()


def test_one_card_has_whole_layers(eager: None):
    model, reference = wide(), wide()
    poolrt.shard(model, topology=cards(count=1), sample=batch())
    assert plan_of(model).stages == ()
    assert_trains_alike(model, reference)
