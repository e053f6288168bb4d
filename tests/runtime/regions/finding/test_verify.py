"""A wrong split is caught in every form, and a right one passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from runtime.regions.specimens import SPECIMENS
from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.capture import capture
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.finding.verify import difference
from poolrt.runtime.regions.plan import Forked, Kind, Region, Rewrite, RowLinear, SplitAttention, SplitEmbedding

HOST = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def exchanged(split: Split) -> Split:
    """The first run of a piece of card 0 changes places with that of card 1: a permutation that nothing else follows.

    card 0   0 1 | 4 5         2 3 | 4 5
    card 1   2 3 | 6 7         0 1 | 6 7
    """
    one, two = (split.indices(card) for card in (0, 1))
    run = min(split.pieces[0][0][1] - split.pieces[0][0][0], split.pieces[1][0][1] - split.pieces[1][0][0])
    run = run // 2 if len(split.pieces[0]) == 1 else run
    one[:run], two[:run] = two[:run], one[:run]
    rest = [split.indices(card) for card in range(2, split.cards)]
    return Split.from_indices([one, two, *rest], split.dim)


def planted(rewrite: Rewrite, parameter: str) -> Rewrite:
    """The rewrite with one parameter dealt out wrongly."""
    if isinstance(rewrite, (RowLinear, SplitEmbedding)):
        return replace(rewrite, split=exchanged(rewrite.split))
    return replace(rewrite, splits={**rewrite.splits, parameter: exchanged(rewrite.splits[parameter])})


# form, specimen, a name in the region, the parameter whose pieces are exchanged
FORMS = [
    ("multi-head", "llama-4", "layers.0.self_attn", "v_proj.weight"),
    ("multi-head queries", "llama-4", "layers.0.self_attn", "q_proj.weight"),
    ("grouped", "llama-2", "layers.0.self_attn", "k_proj.weight"),
    ("alibi", "falcon-alibi", "h.0.self_attention", "query_key_value.weight"),
    ("multi-query", "falcon-multi-query", "h.0.self_attention", "query_key_value.weight"),
    ("fused", "gpt2", "h.0.attn", "c_attn.weight"),
    ("fused bias", "gpt2", "h.0.attn", "c_attn.bias"),
    ("interleaved", "gpt-neox", "layers.0.attention", "query_key_value.weight"),
    ("fused grouped", "phi3", "layers.0.self_attn", "qkv_proj.weight"),
    ("bias per head", "t5", "encoder.block.0.layer.0.SelfAttention", "relative_attention_bias.weight"),
    ("feed-forward", "gpt2", "h.0.mlp", "c_fc.weight"),
    ("feed-forward row", "gpt2", "h.0.mlp", "c_proj.weight"),
    ("gated", "llama-4", "layers.0.mlp", "up_proj.weight"),
    ("gated, fused", "phi3", "layers.0.mlp", "gate_up_proj.weight"),
    ("experts", "mixtral", "layers.0.mlp.experts", "gate_up_proj"),
    ("chain", "bert", "layer.0.attention.self", "value.weight"),
    ("chain bias", "bert", "layer.0.attention.self", "query.bias"),
    ("pair", "bert", "layer.0.intermediate", "dense.weight"),
    ("torch's attention", "encoder", "layers.0.self_attn", "in_proj_weight"),
    ("inline", "whisper", "encoder.layers.0.fc1", "weight"),
    ("inline bias", "encoder", "layers.0.linear1", "bias"),
    ("embedding", "llama-4", "embed_tokens", "weight"),
    ("logits", "llama-4", "lm_head", "weight"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """By specimen: the model, its regions and the calls of its modules."""
    known: dict[str, Any] = {}
    for name in dict.fromkeys(form[1] for form in FORMS):
        model, batch = SPECIMENS[name].build()
        run = lambda m=model, b=batch: m(**b)  # noqa: E731
        known[name] = model, find_regions(model, run, [1, 1]), capture(model, run).calls
    return known


def context_of(region: Region) -> str:
    """The module to call: the one itself, or the one around all."""
    names = [rewrite.module for rewrite in region.rewrites]
    if len(names) == 1:
        return names[0]
    shared = [parts[0] for parts in zip(*(name.split(".") for name in names), strict=False) if len(set(parts)) == 1]
    return ".".join(shared)


def inside(region: Region, context: str) -> list[Rewrite]:
    return [replace(r, module=r.module.removeprefix(context).removeprefix(".")) for r in region.rewrites]


@pytest.mark.parametrize(
    ("specimen", "name", "parameter"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS]
)
def test_a_planted_permutation_is_caught(specimen: str, name: str, parameter: str, found: dict[str, Any]):
    model, plan, calls = found[specimen]
    region = next(r for r in plan.regions if r.rewrites[0].module.endswith(name))
    context = context_of(region)
    module, rewrites = model.get_submodule(context), inside(region, context)
    assert difference(module, calls[context], rewrites, [HOST, HOST]) is None
    wrong = [planted(rewrites[0], parameter), *rewrites[1:]]
    assert difference(module, calls[context], wrong, [HOST, HOST]) is not None


def test_every_form_of_region_has_a_wrong_one_that_is_caught(found: dict[str, Any]):
    caught = {
        next(r.kind for r in found[specimen][1].regions if r.rewrites[0].module.endswith(name))
        for _, specimen, name, _ in FORMS
    }
    assert caught == set(get_args(Kind))


def region_of(found: dict[str, Any], specimen: str, name: str) -> tuple[nn.Module, Any, Any]:
    model, plan, calls = found[specimen]
    region = next(r for r in plan.regions if r.rewrites[0].module.endswith(name))
    module = region.rewrites[0].module
    return model.get_submodule(module), calls[module], replace(region.rewrites[0], module="")


def test_a_wrong_number_is_caught(found: dict[str, Any]):
    module, call, rewrite = region_of(found, "gpt2", "h.0.attn")
    (change,) = rewrite.attributes
    wrong = replace(rewrite, attributes=(replace(change, values=tuple(value // 2 for value in change.values)),))
    assert difference(module, call, [wrong], [HOST, HOST]) is not None


@pytest.mark.parametrize(("specimen", "name"), [("llama-2", "layers.0.self_attn"), ("gpt2", "h.0.attn")])
@pytest.mark.parametrize("which", ["keys", "values"])
def test_heads_that_a_cache_would_give_in_another_order_are_caught(
    specimen: str, name: str, which: str, found: dict[str, Any]
):
    module, call, rewrite = region_of(found, specimen, name)
    assert difference(module, call, [rewrite], [HOST, HOST]) is None
    split = getattr(rewrite.cache, which)
    swapped = Split(dim=split.dim, pieces=split.pieces[::-1])
    wrong = replace(rewrite, cache=replace(rewrite.cache, **{which: swapped}))
    assert difference(module, call, [wrong], [HOST, HOST]) == f"the {which} in its cache differ"


def test_a_part_of_an_input_that_goes_to_the_wrong_card_is_caught(found: dict[str, Any]):
    """The alibi of the other card's heads."""
    module, call, rewrite = region_of(found, "falcon-alibi", "h.0.self_attention")
    (part,) = rewrite.inputs
    wrong = replace(rewrite, inputs=(replace(part, split=exchanged(part.split)),))
    assert difference(module, call, [rewrite], [HOST, HOST]) is None
    assert difference(module, call, [wrong], [HOST, HOST]) is not None


def test_a_bias_that_every_card_adds_is_caught(found: dict[str, Any]):
    module, call, rewrite = region_of(found, "gpt2", "h.0.mlp")
    everywhere = {name: Split.whole(len(module.get_parameter(name)), 2) for name in rewrite.lead}
    wrong = replace(rewrite, lead=(), splits={**rewrite.splits, **everywhere})
    assert everywhere
    assert difference(module, call, [wrong], [HOST, HOST]) is not None


def test_wrong_joining_is_caught(found: dict[str, Any]):
    module, call, rewrite = region_of(found, "llama-4", "layers.0.mlp")
    assert isinstance(rewrite, Forked)
    assert difference(module, call, [replace(rewrite, outputs=("same",))], [HOST, HOST]) is not None


def test_heads_on_the_wrong_card_are_caught_where_a_mask_tells_them_apart():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x, mask = torch.randn(1, 3, 8), torch.randn(2, 3, 3)
    whole = Split.from_counts([4, 4], dim=1)
    thirds = Split(dim=0, pieces=(((0, 4), (8, 12), (16, 20)), ((4, 8), (12, 16), (20, 24))))
    splits = {"in_proj_weight": thirds, "in_proj_bias": thirds, "out_proj.weight": whole}
    right = SplitAttention(module="", splits=splits, heads=(1, 1))
    swapped = {name: Split(dim=split.dim, pieces=split.pieces[::-1]) for name, split in splits.items()}
    call = ((x, x, x), {"attn_mask": mask})
    assert difference(attention, call, [right], [HOST, HOST]) is None
    assert difference(attention, call, [replace(right, splits=swapped)], [HOST, HOST]) == "its output 0 differs"
