"""Rewrites are put on modules and taken off again; the model stays the user's."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS, SlicedPieces
from torch import nn

from poolrt.errors import ModelError
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.running.install import Installed

HOST = [torch.device("cpu")] * 2
pytestmark = pytest.mark.usefixtures("one_thread")


def test_object_class_names_and_signatures_stay(split: Splitter):
    model, batch = SPECIMENS["llama-2"].build()
    attention = model.model.layers[0].self_attn
    before = (type(attention), list(model.state_dict()), inspect.signature(attention.forward))
    made = split(model, batch)
    assert made.model is model
    assert "forward" in attention.__dict__
    assert (type(attention), list(model.state_dict()), inspect.signature(attention.forward)) == before
    assert set(made.installed.forwards) == {
        rewrite.module for region in made.plan.regions for rewrite in region.rewrites
    }


def test_uninstalled_the_model_runs_its_own_forward():
    model, batch = SPECIMENS["encoder"].build()
    attributes = [dict(module.__dict__) for module in model.modules()]
    plan = find_regions(model, lambda: model(**batch), [1, 1])
    installed = Installed(model, plan, HOST, SlicedPieces(model, plan, HOST))
    assert model.layers.layers[0].activation_relu_or_gelu == 0, "the fused path would pass the pieces by"
    with installed.undone():
        assert [dict(module.__dict__) for module in model.modules()] == attributes
        twin = copy.deepcopy(model)
    assert "forward" in model.layers.layers[0].linear1.__dict__
    assert "forward" not in twin.layers.layers[0].linear1.__dict__
    installed.uninstall()
    assert [dict(module.__dict__) for module in model.modules()] == attributes


def test_in_evaluation_pieces_are_what_computes(split: Splitter):
    model, batch = SPECIMENS["encoder"].build()
    model.eval()
    with torch.no_grad():
        expected = model(**batch)["hidden"]
    made = split(model, batch)
    with torch.no_grad():
        read = ~batch["padding"]  # torch's fused path puts zeros where nothing is to be read
        actual = model(**made.batch)["hidden"].cpu()
        torch.testing.assert_close(actual[read], expected[read], rtol=1e-12, atol=1e-13)
        for name, parameter in model.named_parameters():
            if name in made.plan.splits:
                parameter.fill_(float("nan"))
        assert torch.isfinite(model(**made.batch)["hidden"].cpu()).all()


def test_training_and_evaluation_reach_the_pieces(split: Splitter):
    model, batch = SPECIMENS["gpt2"].build()
    made = split(model, batch)
    replica = made.installed.forwards["transformer.h.0.attn"].replicas[1]
    for mode in (False, True):
        model.train(mode)
        model(**made.batch)
        modes = {module.training for module in replica.modules() if not isinstance(module, nn.Identity)}
        assert modes == {mode}, "but for what stands where the lead card drops"


def test_hooks_on_a_region_see_the_whole_output(split: Splitter):
    model, batch = SPECIMENS["llama-2"].build()
    made = split(model, batch)
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(**made.batch)
    assert seen == [(2, 7, 32)]


def test_a_module_whose_forward_was_replaced_meanwhile_is_refused():
    model, batch = SPECIMENS["gpt2"].build()
    plan = find_regions(model, lambda: model(**batch), [1, 1])
    mlp = model.transformer.h[1].mlp
    mlp.forward = mlp.forward
    with pytest.raises(ModelError, match=r"transformer\.h\.1\.mlp"):
        Installed(model, plan, HOST, SlicedPieces(model, plan, HOST))
    assert all("forward" not in module.__dict__ for module in model.modules() if module is not mlp)


@pytest.mark.parametrize("name", ["gpt2", "encoder", "whisper"])
def test_pieces_may_be_replaced_where_they_are_read(name: str, split: Splitter):
    """As a forward of several micro-batches does: stand-ins take the gradients."""
    model, batch = SPECIMENS[name].build()
    made = split(model, batch)
    standing = {}
    for slot in made.installed.slots():
        piece = slot.module._parameters[slot.name]
        standing.setdefault(id(piece), (piece, piece.detach().requires_grad_()))
        slot.module._parameters[slot.name] = standing[id(piece)][1]
    model(**made.batch)["loss"].backward()
    assert all(piece.grad is None for piece, _ in standing.values())
    assert all(stand_in.grad is not None for _, stand_in in standing.values())
    pieces = {id(piece) for name in made.plan.splits for piece in made.pieces(model.get_parameter(name))}
    assert pieces <= standing.keys()


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.body(x)


def test_frozen_weights_get_no_gradients(split: Splitter):
    model = Frozen().double()
    model.body[0].weight.requires_grad_(False)
    made = split(model, {"x": torch.randn(3, 4, dtype=torch.float64)})
    model(**made.batch).sum().backward()
    assert made.pieces.gradient(model.body[0].weight) is None
    assert made.pieces.gradient(model.body[2].weight) is not None


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama-2", "bert", "whisper"])
def test_recomputed_in_backward_gradients_are_the_same(name: str, reentrant: bool, split: Splitter):
    model, batch = SPECIMENS[name].build()
    made = split(model, batch)

    def gradients() -> dict[str, torch.Tensor]:
        for slot in made.installed.slots():
            slot.parameter.grad = None
        model.zero_grad()
        model(**made.batch)["loss"].backward()
        found = {key: made.pieces.gradient(parameter) for key, parameter in model.named_parameters()}
        return {key: gradient.clone() for key, gradient in found.items() if gradient is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-12, atol=1e-14, msg=key)


@pytest.mark.parametrize("name", ["llama-2", "gpt2"])
def test_under_autocast_losses_agree_as_the_narrow_type_allows(name: str, split: Splitter):
    reference, batch = SPECIMENS[name].build()
    reference.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = reference(**batch)["loss"]
    model, batch = SPECIMENS[name].build()
    made = split(model.float(), batch)
    with torch.autocast("vcard", torch.bfloat16):
        actual = model(**made.batch)["loss"]
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.cpu(), expected, rtol=5e-3, atol=0)


def test_threads_run_the_same_regions_at_once(split: Splitter):
    model, batch = SPECIMENS["gpt2"].build()
    made = split(model, batch)
    expected = model(**made.batch)["loss"].item()
    with ThreadPoolExecutor(3) as threads:
        losses = list(threads.map(lambda _: model(**made.batch)["loss"].item(), range(12)))
    assert losses == [expected] * 12
