"""Generation with split attention gives the same tokens; each card keeps the keys and values of its heads."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS
from transformers import DynamicCache

from poolrt.errors import ModelError
from poolrt.runtime.regions.card_caches import caches_of

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama-2", "gpt2", "falcon-multi-query"])
def test_generated_tokens_are_the_same(name: str, way: str, split: Splitter):
    if way == "static" and name == "falcon-multi-query":
        pytest.skip("Falcon has no static cache")
    options = {"max_new_tokens": 5, "do_sample": False, **WAYS[way]}
    model, batch = SPECIMENS[name].build()
    model.eval()
    prompt = batch["input_ids"][:, :3]
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    made = split(model, batch)
    prompt = prompt.to(made.batch["input_ids"].device)
    actual = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(actual.cpu(), expected)


def test_each_card_keeps_its_heads(split: Splitter):
    model, batch = SPECIMENS["llama-2"].build()
    made = split(model.eval(), batch)
    cache = DynamicCache()
    with torch.no_grad():
        model(made.batch["input_ids"], past_key_values=cache, use_cache=True)
    whole, twin = caches_of(cache, 2)
    assert whole is cache
    for held, card in ((whole, 0), (twin, 1)):
        assert held.layers[1].keys.shape == (2, 1, 7, 8)
        assert held.layers[1].keys.device.index == card
    cache.crop(-3)
    assert twin.get_seq_length() == 4


def test_twins_go_with_their_cache():
    cache = DynamicCache()
    twin = weakref.ref(caches_of(cache, 2)[1])
    del cache
    gc.collect()
    assert twin() is None


def test_a_cache_that_is_filled_already_is_refused():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 4, 3, 2), torch.zeros(1, 4, 3, 2), 0)
    with pytest.raises(ModelError, match="begin with an empty one"):
        caches_of(cache, 2)
