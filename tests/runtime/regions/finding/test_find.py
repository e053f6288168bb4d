"""What is found in whole models, what is refused and why, and that a look leaves no trace."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import HEADS, SPECIMENS, WIDTH, gpt2, of
from torch import Tensor, nn

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split
from poolrt.runtime.regions.finding import noted
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.plan import RegionPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def plan_for(model: nn.Module, batch: dict[str, Any], cards: int = 2, **options: Any) -> RegionPlan:
    return find_regions(model, lambda: model(**batch), [1.0] * cards, **options)


def reason(plan: RegionPlan, name: str) -> str:
    return next(refusal.reason for refusal in plan.refused if refusal.name.startswith(name))


# ---- what is found


def test_the_forms_of_bert():
    plan = plan_for(*SPECIMENS["bert"].build())
    assert [(region.kind, region.name.replace("bert.encoder.", "")) for region in plan.regions] == [
        ("chain", "layer.0.attention.self -> layer.0.attention.output.dense"),
        ("chain", "layer.0.intermediate -> layer.0.output.dense"),
        ("chain", "layer.1.attention.self -> layer.1.attention.output.dense"),
        ("chain", "layer.1.intermediate -> layer.1.output.dense"),
        ("embedding", "bert.embeddings.word_embeddings"),
        ("embedding", "bert.embeddings.position_embeddings"),  # this and the next are large only in so small a model
        ("columns", "cls.predictions.transform.dense"),
        ("columns", "cls.predictions.decoder"),
    ]
    assert "query.bias" in "".join(plan.splits)
    key = plan.splits["bert.encoder.layer.0.attention.self.key.bias"]
    assert key.pieces == plan.splits["bert.encoder.layer.0.attention.self.key.weight"].pieces, "its gradient is zero"


def test_the_forms_of_whisper():
    plan = plan_for(*SPECIMENS["whisper"].build())
    kinds = [region.kind for region in plan.regions]
    assert (kinds.count("fork"), kinds.count("inline")) == (6, 4)


def test_gpt2s_fused_weight_has_three_ranges_per_card():
    plan = plan_for(*SPECIMENS["gpt2"].build())
    third, half = WIDTH, WIDTH // 2
    pieces = tuple(
        tuple((part * third + card * half, part * third + (card + 1) * half) for part in range(3)) for card in range(2)
    )
    assert plan.splits["transformer.h.1.attn.c_attn.weight"] == Split(dim=1, pieces=pieces)


def test_fewer_key_value_heads_than_cards_are_held_twice():
    plan = plan_for(*SPECIMENS["llama-2"].build(), cards=4)
    split = plan.splits["model.layers.0.self_attn.k_proj.weight"]
    assert split.pieces == (((0, 8),), ((0, 8),), ((8, 16),), ((8, 16),))
    assert split.replicated == ((0, 16),)


def test_tied_parameters_are_one_entry_with_one_split():
    model, batch = SPECIMENS["qwen2"].build()
    plan = plan_for(model, batch)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "model.embed_tokens.weight" in plan.splits
    assert "lm_head.weight" not in plan.splits
    assert {region.name for region in plan.regions} >= {"lm_head", "model.embed_tokens"}


class Wide(nn.Module):
    """One linear layer that is most of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.act, self.narrow = nn.Linear(4, 90), nn.Softmax(-1), nn.Linear(90, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.act(self.wide(x)))


def test_a_linear_layer_that_is_large_is_split_by_itself(split: Splitter):
    model, x = Wide().double(), torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    made = split(model, {"x": x})
    assert [region.kind for region in made.plan.regions] == ["columns", "columns"]
    model(**made.batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(made.pieces.gradient(parameter), gradients[name], rtol=1e-12, atol=1e-13)
    assert {piece.device.index for piece in made.pieces(model.wide.weight)} == {0, 1}


def test_unequal_cards_get_unequal_shares(split: Splitter):
    specimen = SPECIMENS["llama-4"]
    reference, batch = specimen.build()
    expected = reference(**batch).loss
    model, batch = specimen.build()
    made = split(model, batch, [3, 1])
    assert made.plan.splits["model.layers.0.self_attn.q_proj.weight"].piece_sizes == (24, 8)
    assert made.plan.splits["model.layers.0.mlp.up_proj.weight"].piece_sizes == (36, 12)
    torch.testing.assert_close(model(**made.batch).loss.cpu(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("bert", 1e-12), ("t5", 1e-12), ("falcon-alibi", 1e-6), ("whisper", 1e-12), ("encoder", 1e-12)],
)  # Falcon's own loss takes the logits to fp32
def test_another_batch_size_and_length_than_the_one_looked_at(name: str, tolerance: float, split: Splitter):
    specimen = SPECIMENS[name]
    model, small = specimen.build()
    reference, _ = specimen.build()
    made = split(model, small)
    batch = {key: torch.cat([value, value.flip(0), value], 0) if isinstance(value, Tensor) else value
             for key, value in small.items()}  # fmt: skip
    if name not in ("whisper", "encoder"):
        batch = {
            key: value[:, :-2].contiguous() if isinstance(value, Tensor) else value for key, value in batch.items()
        }
    expected = reference(**batch)["loss"]
    lead = next(made.model.parameters()).device
    actual = model(**{key: value.to(lead) if isinstance(value, Tensor) else value for key, value in batch.items()})
    torch.testing.assert_close(actual["loss"].cpu(), expected, rtol=tolerance, atol=0)


class Gated(nn.Module):
    """A gated unit written out in a block that norms and adds: no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def test_a_gated_unit_written_out_in_a_block():
    plan = plan_for(Gated(), {"x": torch.randn(5, 6)}, large=1.0)
    assert [(region.kind, region.name) for region in plan.regions] == [("inline", "gate -> up -> down")]


class Adapted(nn.Linear):
    """A linear layer with a low-rank addition, as adapters are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.first, self.second = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.second(self.first(x))


def test_attention_with_adapters_is_split_and_only_what_must_be_is_whole():
    model, batch = SPECIMENS["llama-4"].build()
    for layer in model.model.layers:
        layer.self_attn.q_proj, layer.self_attn.v_proj = (Adapted(WIDTH, WIDTH).double() for _ in range(2))
    plan = plan_for(model, batch)
    name = "model.layers.1.self_attn"
    assert name in {region.name for region in plan.regions}
    assert plan.splits[f"{name}.q_proj.second.weight"].piece_sizes == (WIDTH // 2, WIDTH // 2)
    assert plan.splits[f"{name}.q_proj.first.weight"].is_whole


def test_weights_that_are_computed_from_others_are_left_alone():
    model = TwoBlocks(nn.Identity(), nn.Identity())
    nn.utils.parametrizations.weight_norm(model.blocks[0].down)
    plan = plan_for(model, {"x": torch.randn(5, 6)})
    assert not any(name.startswith("blocks.0.down") for name in plan.splits)


# ---- what is refused


def test_what_spans_heads_is_refused_by_name():
    model = of("Olmo2", num_key_value_heads=4)().double()
    batch = {"input_ids": torch.randint(3, 90, (1, 5)), "use_cache": False}
    plan = plan_for(model, batch)
    assert "q_norm and k_norm would work across cards" in reason(plan, "model.layers.0.self_attn")
    assert not any("self_attn" in name for name in plan.splits)
    first = "model.layers.0.self_attn and 1 other (model.layers.1.self_attn the last) stay whole: q_norm and k_norm"
    assert [line.startswith(first) for line in plan.explain()] == [False, True], "one sentence for equal layers"
    assert str(plan.refused[0]).startswith("model.layers.0.self_attn stays whole: ")


def test_fewer_heads_than_cards_are_refused():
    model, batch = SPECIMENS["llama-4"].build()
    plan = plan_for(model, batch, cards=HEADS + 1)
    assert reason(plan, "model.layers.0.self_attn")
    assert any("mlp" in name for name in plan.splits)


class Block(nn.Module):
    """A feed-forward block, with something done in the middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(6, 8), middle, nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(x).relu()))


class TwoBlocks(nn.Module):
    def __init__(self, *middles: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(middle) for middle in middles)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def blocks(*middles: nn.Module, **options: Any) -> RegionPlan:
    model = TwoBlocks(*middles)
    return plan_for(model, {"x": torch.randn(5, 6)}, large=1.0, **options)


def test_statistics_of_a_batch_are_refused():
    plan = blocks(nn.BatchNorm1d(8), nn.Identity())
    assert "middle keeps statistics" in reason(plan, "blocks.0")
    assert [region.name for region in plan.regions] == ["blocks.1"]


def test_a_norm_across_hidden_units_is_refused_by_name():
    assert "middle would work across cards" in reason(blocks(nn.LayerNorm(8), nn.Identity()), "blocks.0")


def test_a_forward_that_other_code_replaced_is_left_alone():
    model = TwoBlocks(nn.Identity(), nn.Identity())
    up = model.blocks[0].up
    up.forward = lambda x, own=up.forward: own(x) + 1
    plan = plan_for(model, {"x": torch.randn(5, 6)}, large=1.0)
    assert "the forward of up was replaced" in reason(plan, "blocks.0")
    assert [region.name for region in plan.regions] == ["blocks.1"]


def test_a_parameter_that_two_layers_split_differently_stays_with_the_first():
    model = TwoBlocks(nn.Identity(), nn.Identity())
    model.blocks[1].down.weight = nn.Parameter(torch.randn(6, 8))
    square = nn.Parameter(torch.randn(8, 8))
    for block in model.blocks:
        block.up, block.down = nn.Linear(8, 8), nn.Linear(8, 8)
    model.blocks[0].up.weight = model.blocks[1].down.weight = square
    plan = plan_for(model, {"x": torch.randn(5, 8)}, large=1.0)
    assert "used by another layer too" in reason(plan, "blocks.1")
    assert plan.splits["blocks.0.up.weight"].dim == 0


@pytest.mark.parametrize("shares", [[1], [1, 0], []])
def test_one_card_is_nothing_to_split_over(shares: list[float]):
    with pytest.raises(ConfigurationError, match="two cards or more"):
        find_regions(nn.Linear(2, 2), lambda: None, shares)


# ---- without a trace


def test_the_model_and_all_generators_are_as_they_were():
    model, batch = SPECIMENS["mixtral"].build()
    model.model.layers[0].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    attributes = [sorted(module.__dict__) for module in model.modules()]
    classes = [type(module) for module in model.modules()]
    config, generator = type(model.config), torch.get_rng_state()
    plan_for(model, batch)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    assert [module.training for module in model.modules()] == modes
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    assert [type(module) for module in model.modules()] == classes
    assert type(model.config) is config
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_equal_layers_are_found_and_proven_once(monkeypatch: pytest.MonkeyPatch):
    proofs: list[str] = []
    proven = noted.difference
    monkeypatch.setattr(
        noted, "difference", lambda module, *rest: proofs.append(type(module).__name__) or proven(module, *rest)
    )
    counts = {}
    for layers in (2, 5):
        proofs.clear()
        model = of("Llama", num_key_value_heads=2, num_hidden_layers=layers)()
        plan = plan_for(model, {"input_ids": torch.randint(3, 90, (1, 5)), "use_cache": False})
        counts[layers] = list(proofs)
        assert len(plan.regions) == 2 * layers + 2
    assert counts[2] == counts[5] == ["LlamaAttention", "LlamaMLP", "Embedding", "Linear"]


def test_layers_that_differ_in_a_number_their_code_reads_are_not_equal():
    model = gpt2(scale_attn_by_inverse_layer_idx=True).double()
    batch = {"input_ids": torch.randint(3, 90, (1, 5)), "use_cache": False}
    expected = model(**batch).logits
    plan = plan_for(model, batch)
    assert len([region for region in plan.regions if region.name.endswith(".attn")]) == 2
    assert torch.equal(model(**batch).logits, expected)


# ---- the plan


def test_the_plan_is_plain_data_and_sentences():
    plan = plan_for(*SPECIMENS["llama-2"].build())
    form = json.loads(json.dumps(plan.to_json()))
    assert form["cards"] == 2
    assert form["regions"][0]["modules"] == ["model.layers.0.self_attn"] or form["regions"][0]["kind"] == "fork"
    assert {name: Split.from_json(item) for name, item in form["splits"].items()} == plan.splits
    assert (
        plan.explain()[0] == f"6 regions are split over 2 cards: {plan.split_share:.0%} of the parameters lie in pieces"
    )


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6, max_norm=1.0)

    def forward(self, ids: Tensor) -> Tensor:
        return F.relu(self.table(ids))


def test_an_embedding_that_changes_its_rows_is_refused():
    plan = plan_for(Table(), {"ids": torch.arange(4)})
    assert "renormalizes rows" in reason(plan, "table")
    assert plan.split_share == 0.0
