"""What a split model's plan says of each card's memory, beside what the card then holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

import poolrt
from poolrt.planning.plan import Plan
from poolrt.runtime.regions.running.parted import Parted
from poolrt.topology.topology import Topology

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY, WIDTH = 256, 64


def bert(layers: int = 3) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def gpt2(layers: int = 3) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=layers,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def llama(layers: int = 3) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=3 * WIDTH,
        )
    )


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}


def batch_of(samples: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (samples, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def cards(count: int, memory: Any = "64MiB") -> Topology:
    return poolrt.virtual(cards=count, memory=memory)


def measured_peaks(model: nn.Module, batch: dict[str, Tensor]) -> tuple[int | None, ...]:
    """Two steps of AdamW: the second has the optimizer's state from the start."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return poolrt.report(model).measured_peak_bytes


@pytest.mark.parametrize("form", [(8, 32), (1, 8)], ids=["many activations", "one short sample"])
@pytest.mark.parametrize(("name", "count"), [("bert", 2), ("gpt2", 2), ("llama", 2), ("llama", 4)])
def test_the_peak_of_every_card_is_the_plans(name: str, count: int, form: tuple[int, int]):
    model, batch, topology = MODELS[name](), batch_of(*form), cards(count)
    plan = poolrt.plan(model, batch, topology, tensor_parallel=count)
    assert {p.device.type for p in model.parameters()} == {"cpu"}, "a plan moves nothing"
    poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=count)
    for card, measured in zip(plan.cards, measured_peaks(model, batch), strict=True):
        assert card.predicted_peak_bytes == pytest.approx(measured, rel=0.05), f"card {card.index}"


def test_cards_of_unequal_memory_get_unequal_parts():
    model, batch, topology = MODELS["llama"](), batch_of(4, 16), cards(2, ["96MiB", "32MiB"])
    poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=2)
    large, small = poolrt.report(model).plan.cards
    assert small.predicted_bytes.weights < 0.5 * large.predicted_bytes.weights
    for card, measured in zip((large, small), measured_peaks(model, batch), strict=True):
        assert card.predicted_peak_bytes == pytest.approx(measured, rel=0.05), f"card {card.index}"


def test_logits_are_never_whole_on_a_card(monkeypatch: pytest.MonkeyPatch):
    model, batch = MODELS["llama"](), batch_of(2, 8)
    poolrt.shard(model, topology=cards(2), sample=batch, tensor_parallel=2)
    gathered: list[torch.Size] = []
    whole = Parted.whole
    monkeypatch.setattr(Parted, "whole", lambda self: gathered.append(self.shape) or whole(self))
    output = model(**batch)
    output.loss.backward()
    assert output.logits.shape == (2, 8, VOCABULARY)
    assert gathered == []


def test_a_plan_is_stored_and_explains_itself():
    model, batch, topology = MODELS["bert"](), batch_of(2, 8), cards(2)
    plan = poolrt.plan(model, batch, topology, tensor_parallel=2)
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["tensor_parallel"] == 2
    text = plan.explain()
    assert "regions are split over 2 cards" in text
    assert "bert.encoder.layer.0-2" in text.replace("\n", "")
    assert "bert.encoder.layer.0.intermediate" in plan.split_modules
    poolrt.shard(model, topology=topology, sample=batch, plan=plan)
    report = poolrt.report(model)
    assert report.plan == plan
    for _ in range(2):
        model(**batch).loss.backward()
    assert poolrt.report(model).measured_step_s > 0


def test_a_plan_for_another_split_is_refused():
    model, batch, topology = MODELS["bert"](), batch_of(2, 8), cards(2)
    plan = poolrt.plan(model, batch, topology, tensor_parallel=2)
    form = json.loads(plan.to_json())
    form["split_modules"] = form["split_modules"][1:]
    with pytest.raises(poolrt.errors.PlanError, match="make a new plan"):
        poolrt.shard(model, topology=topology, sample=batch, plan=Plan.from_json(json.dumps(form)))
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_looking_leaves_the_model_and_the_generators_as_they_were():
    model, batch = zoo.bert(2, attention_probs_dropout_prob=0.1), batch_of(2, 8)
    batch = {name: values % zoo.VOCABULARY for name, values in batch.items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    state = torch.get_rng_state()
    topology = cards(2)
    held = [torch.vcard.memory_allocated(card) for card in range(2)]
    poolrt.plan(model.train(), batch, topology, tensor_parallel=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [torch.vcard.memory_allocated(card) for card in range(2)] == held
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
