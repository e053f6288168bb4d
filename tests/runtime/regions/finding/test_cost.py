"""What a look at a large model costs: bytes, and how often a question is asked."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from poolrt.runtime.regions.finding import search_region
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.state.layers import find_layers
from poolrt.runtime.state.memory_watch import MemoryWatch

pytestmark = pytest.mark.usefixtures("one_thread")


def large_bert(layers: int) -> BertForMaskedLM:
    """BERT-large with fewer layers."""
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096, vocab_size=30522
    )
    with torch.device("meta"):
        model = BertForMaskedLM(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().normal_(std=0.02) if tensor.is_floating_point() else tensor.zero_()
    return model


def test_a_look_at_bert_large_takes_less_than_one_and_a_half_of_its_largest_layer(monkeypatch: pytest.MonkeyPatch):
    model = large_bert(layers=2)
    ids = torch.ones(1, 8, dtype=torch.int64)
    largest = max(sum(p.nbytes for p in layer.module.parameters()) for layer in find_layers(model, 2))
    probes: list[str] = []
    make = search_region.RegionProbe

    def counted(module, *rest):
        probes.append(str(module))
        return make(module, *rest)

    monkeypatch.setattr(search_region, "RegionProbe", counted)
    with MemoryWatch() as watch:
        plan = find_regions(model, lambda: model(input_ids=ids), [1, 1])
    assert watch.peak <= 1.5 * largest
    assert len(probes) == len(set(probes)), "equal layers are looked at once"
    assert plan.split_share > 0.95
    assert len([region for region in plan.regions if region.kind == "chain"]) == 4
