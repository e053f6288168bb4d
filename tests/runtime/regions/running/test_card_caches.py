"""Key-value caches of split models: each card keeps its heads, and to the user the cache is that of one card.

4 key-value heads, two cards       the user reads     h0 h1 h2 h3
card 0   h0 h1                     the cards keep     h0 h1 | h2 h3
card 1   h2 h3
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS, SplitModel, of
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from poolrt.errors import ModelError
from poolrt.runtime.regions.running.card_caches import cache_on_card
from poolrt.runtime.regions.running.layer_in_parts import is_in_parts
from poolrt.runtime.state.trees import flatten

pytestmark = pytest.mark.usefixtures("one_thread")

DECODERS = [
    "gpt2", "llama-1", "llama-2", "llama-4", "qwen3", "phi3", "gpt-neox", "falcon-new", "falcon-multi-query",
    "falcon-alibi",
]  # fmt: skip


def pair(name: str, split: Splitter, count: int = 2) -> tuple[nn.Module, SplitModel]:
    """The model as it is, and split."""
    (reference, batch), (model, _) = SPECIMENS[name].build(), SPECIMENS[name].build()
    return reference.eval(), split(model.eval(), batch, [1.0] * count)


def on_lead(tensor: Tensor, made: SplitModel) -> Tensor:
    return tensor.to(made.batch["input_ids" if "input_ids" in made.batch else "input_features"].device)


def run(model: nn.Module, cache: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).logits


def both(reference: nn.Module, made: SplitModel, caches: tuple[Any, Any], ids: Tensor) -> None:
    """One forward of each with these tokens; the logits must agree."""
    expected, actual = run(reference, caches[0], ids), run(made.model, caches[1], on_lead(ids, made))
    assert_near(expected, actual)


def assert_near(expected: Tensor, actual: Tensor, tolerance: float = 1e-6) -> None:
    assert expected.shape == actual.shape
    assert (expected - actual.cpu()).abs().max().item() <= tolerance * expected.abs().max().item()


def assert_same_cache(expected: Any, actual: Any) -> None:
    """Every layer read whole, in all the ways there are."""
    assert len(actual) == len(expected)
    assert int(actual.get_seq_length()) == int(expected.get_seq_length())
    assert actual.get_max_length() == expected.get_max_length()
    for mine, theirs in zip(expected.layers, actual.layers, strict=True):
        assert isinstance(theirs, type(mine))
        assert_near(mine.keys, theirs.keys)
        assert_near(mine.values, theirs.values)
    if hasattr(expected, "__iter__"):
        for mine, theirs in zip(expected, actual, strict=True):
            assert_near(mine[0], theirs[0])


def parts_of(cache: Any, layer: int, count: int) -> list[tuple[int, int]]:
    """(card, heads) of the keys that lie there."""
    keys = [cache.layers[layer].part(card).keys for card in range(count)]
    return [(key.device.index, key.shape[1]) for key in keys]


# ---- read whole


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_is_read_whole(name: str, count: int, split: Splitter):
    """Heads that are on several cards come out once, in the model's order."""
    reference, made = pair(name, split, count)
    caches = DynamicCache(config=reference.config), DynamicCache(config=made.model.config)
    ids = torch.randint(3, 90, (2, 5))
    both(reference, made, caches, ids)
    both(reference, made, caches, ids[:, :1])
    assert_same_cache(*caches)
    assert caches[1].layers[0].keys.device.index == 0, "on the lead card"
    assert [card for card, _ in parts_of(caches[1], 1, count)] == list(range(count))
    assert not made.model.training


def test_each_card_keeps_its_heads(split: Splitter):
    _, made = pair("llama-2", split, 4)
    cache = DynamicCache()
    run(made.model, cache, made.batch["input_ids"])
    assert parts_of(cache, 1, 4) == [(0, 1), (1, 1), (2, 1), (3, 1)], "two heads, each on two cards"
    assert cache.layers[1].keys.shape == (2, 2, 7, 8)
    assert cache.layers[1].part(0).keys.data_ptr() == cache.layers[1].part(0).keys.data_ptr(), "reading moves nothing"


def test_reading_copies_and_the_next_token_does_not(split: Splitter):
    """What the cards keep is not gathered to go on: the other cards' parts grow where they are."""
    _, made = pair("llama-4", split)
    cache = DynamicCache()
    run(made.model, cache, made.batch["input_ids"])
    whole = cache.layers[0].keys
    whole.zero_()
    assert cache.layers[0].keys.abs().max() > 0, "what was read is the reader's"
    run(made.model, cache, made.batch["input_ids"][:, :1])
    assert [part.keys.shape for part in map(cache.layers[0].part, (0, 1))] == [(2, 2, 8, 8)] * 2


# ---- changed by its owner


def changed(name: str) -> Any:
    return {
        "reordered": lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
        "cropped": lambda cache: cache.crop(-2),
        "repeated": lambda cache: cache.batch_repeat_interleave(2),
        "selected": lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
        "emptied": lambda cache: cache.reset(),
        "set": lambda cache: setattr(cache.layers[1], "keys", cache.layers[1].keys * 2),
        "cut by hand": lambda cache: [
            setattr(layer, key, getattr(layer, key)[:, :, 1:]) for layer in cache.layers for key in ("keys", "values")
        ],
        "a layer at a time": lambda cache: [layer.crop(-1) for layer in cache.layers],
    }[name]


CHANGES = ["reordered", "cropped", "repeated", "selected", "emptied", "set", "cut by hand", "a layer at a time"]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_what_its_owner_does_to_a_cache_is_done_on_all_cards(change: str, count: int, split: Splitter):
    """And the model goes on from there: prefix reuse, beams, groups of samples."""
    reference, made = pair("llama-2", split, count)
    caches = DynamicCache(), DynamicCache()
    ids = torch.randint(3, 90, (3, 5))
    both(reference, made, caches, ids)
    for cache in caches:
        changed(change)(cache)
    samples = {"repeated": 6, "selected": 2}.get(change, 3)
    both(reference, made, caches, ids[:1, :2].expand(samples, -1))
    assert_same_cache(*caches)


def test_copies_of_a_cache_go_separate_ways(split: Splitter):
    """A prompt that many continuations share: each goes on from a deep copy."""
    reference, made = pair("gpt2", split)
    prompts = DynamicCache(), DynamicCache()
    both(reference, made, prompts, torch.randint(3, 90, (1, 4)))
    for _ in range(2):
        caches = copy.deepcopy(prompts[0]), copy.deepcopy(prompts[1])
        both(reference, made, caches, torch.randint(3, 90, (1, 2)))
        assert_same_cache(*caches)
    assert_same_cache(*prompts)
    assert prompts[1].get_seq_length() == 4
    assert is_in_parts(copy.deepcopy(prompts[1]).layers[0]), "no whole tensor is made to copy"


def test_a_pickled_cache_is_whole(split: Splitter):
    reference, made = pair("llama-4", split)
    caches = DynamicCache(), DynamicCache()
    both(reference, made, caches, torch.randint(3, 90, (2, 5)))
    plain = pickle.loads(pickle.dumps(caches[1]))
    assert not is_in_parts(plain.layers[0])
    assert_same_cache(caches[0], plain)


def test_a_cache_shows_its_tensors_as_one_of_one_card_does(split: Splitter):
    """Whatever looks through a model's outputs finds the same tensors in it."""
    reference, made = pair("llama-2", split)
    caches = DynamicCache(), DynamicCache()
    both(reference, made, caches, torch.randint(3, 90, (2, 5)))
    expected, actual = (flatten(cache, into_state=True) for cache in caches)
    assert [leaf.path for leaf in expected.leaves] == [leaf.path for leaf in actual.leaves]
    for mine, theirs in zip(expected.tensors, actual.tensors, strict=True):
        assert_near(mine, theirs)
    doubled = actual.rebuild(2 * tensor for tensor in actual.tensors)
    assert_near(2 * expected.tensors[0], doubled.layers[0].keys)
    assert_near(expected.tensors[0], caches[1].layers[0].keys)


# ---- other kinds


def static(model: nn.Module) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=12)


def test_static_caches(split: Splitter):
    reference, made = pair("llama-2", split)
    caches = static(reference), static(made.model)
    ids = torch.randint(3, 90, (2, 5))
    for _ in range(2):
        both(reference, made, caches, ids)
        both(reference, made, caches, ids[:, :1])
        assert_same_cache(*caches)
        assert caches[1].layers[0].num_heads == caches[0].layers[0].num_heads == 2
        for cache in caches:
            cache.reset()


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_caches_of_a_sliding_window(kind: type, split: Splitter):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return of("Mistral", num_key_value_heads=2, sliding_window=4)().double().eval()

    reference, batch = build(), {"input_ids": torch.randint(3, 90, (2, 7)), "use_cache": False}
    made = split(build(), batch)
    more = {"max_cache_len": 12} if kind is StaticCache else {}
    caches = kind(config=reference.config, **more), kind(config=reference.config, **more)
    ids = torch.randint(3, 90, (2, 6))
    for tokens in (ids, ids[:, :1], ids[:, 1:2]):
        both(reference, made, caches, tokens)
        assert_same_cache(*caches)
    assert caches[1].is_sliding == [True, True]


def test_quantized_caches_keep_their_parts_and_are_not_read_whole_by_accident(split: Splitter):
    """Each card has a scale of its own, so that the parts together are as near to the numbers as one scale is."""
    reference, made = pair("llama-2", split)
    caches = QuantizedCache("fp8", reference.config), QuantizedCache("fp8", made.model.config)
    ids = torch.randint(3, 90, (2, 5))
    both(reference, made, caches, ids)
    expected, actual = run(reference, caches[0], ids[:, :1]), run(made.model, caches[1], on_lead(ids[:, :1], made))
    assert_near(expected, actual, 0.05)
    assert caches[1].get_seq_length() == 6
    with pytest.raises(ModelError, match="only keys and values"):
        _ = caches[1].layers[0]._quantized_keys


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_caches_of_encoders_and_decoders(name: str, split: Splitter):
    reference, made = pair(name, split)
    caches = tuple(EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2))
    source = "input_ids" if name == "t5" else "input_features"
    inputs = SPECIMENS[name].build()[1][source]
    for tokens in (torch.full((2, 1), 1), torch.full((2, 1), 5), torch.full((2, 1), 6)):
        with torch.no_grad():
            expected = reference(**{source: inputs}, decoder_input_ids=tokens, past_key_values=caches[0])
            given = {source: on_lead(inputs, made)}
            actual = made.model(**given, decoder_input_ids=on_lead(tokens, made), past_key_values=caches[1])
        assert_near(expected.logits, actual.logits)
        for kind in ("self_attention_cache", "cross_attention_cache"):
            assert_same_cache(getattr(caches[0], kind), getattr(caches[1], kind))
        assert caches[1].is_updated == caches[0].is_updated == {0: True, 1: True}
    for cache in caches:
        cache.reorder_cache(torch.tensor([1, 0]))
    assert_same_cache(caches[0].cross_attention_cache, caches[1].cross_attention_cache)
    caches[1].reset()
    assert caches[1].is_updated == {0: False, 1: False}


# ---- filled before


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ["llama-1", "llama-2", "gpt2"])
def test_a_cache_filled_before_the_model_was_split_goes_on(name: str, count: int, split: Splitter):
    (reference, batch), (model, _) = SPECIMENS[name].build(), SPECIMENS[name].build()
    caches = DynamicCache(), DynamicCache()
    ids = torch.randint(3, 90, (2, 4))
    run(reference.eval(), caches[0], ids), run(model.eval(), caches[1], ids)
    made = split(model, batch, [1.0] * count)
    both(reference, made, caches, ids[:, :2])
    assert_same_cache(*caches)


def test_legacy_tuples_become_a_cache(split: Splitter):
    """Keys and values as tuples, from an earlier version or another library."""
    reference, made = pair("llama-2", split)
    filled = DynamicCache()
    run(reference, filled, torch.randint(3, 90, (2, 4)))
    legacy = [(layer.keys, layer.values) for layer in filled.layers]
    lead = [tuple(on_lead(tensor, made) for tensor in layer) for layer in legacy]
    caches = DynamicCache(legacy), DynamicCache(lead)
    both(reference, made, caches, torch.randint(3, 90, (2, 2)))
    assert_same_cache(*caches)


def test_learned_prefixes_get_their_gradients(split: Splitter):
    """Keys and values that are trained: every card's part of the gradient comes back."""
    reference, made = pair("llama-2", split)
    prefix = torch.randn(2, 2, 2, 2, 3, 8, dtype=torch.float64)  # layer, keys or values, sample, head, place, width
    ids = torch.randint(3, 90, (2, 4))
    gradients = []
    for model, mine in ((reference, prefix.clone()), (made.model, on_lead(prefix, made))):
        mine.requires_grad_()
        cache = DynamicCache([tuple(layer.unbind()) for layer in mine.unbind()])
        model(ids.to(mine.device), past_key_values=cache).logits.square().mean().backward()
        gradients.append(mine.grad)
    assert_near(*gradients)


def test_a_whole_model_goes_on_with_the_cache_of_a_split_one(split: Splitter):
    """As when a draft is checked by another model, or a model is made whole again."""
    reference, made = pair("llama-2", split)
    caches = DynamicCache(), DynamicCache()
    ids = torch.randint(3, 90, (2, 4))
    both(reference, made, caches, ids)
    made.installed.uninstall()
    whole = SPECIMENS["llama-2"].build()[0].eval().to(made.batch["input_ids"].device)
    expected, actual = run(reference, caches[0], ids), run(whole, caches[1], on_lead(ids, made))
    assert_near(expected, actual)
    assert_same_cache(*caches)


# ---- what is refused


class Foreign:
    """A cache of somebody's own."""

    def get_seq_length(self) -> int:
        return 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values


def test_caches_of_another_kind_are_refused(cards: Any):
    devices = cards(2)
    with pytest.raises(ModelError, match="use a cache of transformers"):
        cache_on_card(Foreign(), 0, devices, None)
    cache = DynamicCache()
    cache.kept = {0: torch.zeros(2)}
    with pytest.raises(ModelError, match="keeps tensors in kept"):
        cache_on_card(cache, 1, devices, None)


def test_what_is_not_known_is_not_read_whole(cards: Any):
    devices, cache = cards(2), DynamicCache()
    for card in range(2):
        cache_on_card(cache, card, devices, None).update(*[torch.ones(1, 2, 3, 4, device=devices[card])] * 2, 0)
    assert cache.get_seq_length() == 3
    with pytest.raises(ModelError, match="not known which heads"):
        _ = cache.layers[0].keys
    cache.crop(-1)
    assert cache.get_seq_length() == 2
    filled = DynamicCache()
    filled.update(torch.zeros(1, 4, 3, 2), torch.zeros(1, 4, 3, 2), 0)
    with pytest.raises(ModelError, match="begin with an empty cache"):
        cache_on_card(filled, 0, devices, None).layers[0]


# ---- generation

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "looked up": {"do_sample": False, "prompt_lookup_num_tokens": 2},
    "returned": {"do_sample": False, "return_dict_in_generate": True},
}


def generated(model: nn.Module, prompt: Tensor, way: str, **more: Any) -> Any:
    torch.manual_seed(3)
    told = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None, **WAYS[way], **more}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **told)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama-2", "gpt2", "falcon-multi-query"])
def test_generated_tokens_are_the_same(name: str, way: str, split: Splitter):
    if way == "static" and name == "falcon-multi-query":
        pytest.skip("Falcon has no static cache")
    reference, made = pair(name, split)
    prompt = SPECIMENS[name].build()[1]["input_ids"][: 1 if way == "looked up" else 2, :3]
    expected, actual = generated(reference, prompt, way), generated(made.model, on_lead(prompt, made), way)
    if way == "returned":
        assert_same_cache(expected.past_key_values, actual.past_key_values)
        expected, actual = expected.sequences, actual.sequences
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("name", ["t5", "whisper"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_tokens_of_encoders_and_decoders_are_the_same(name: str, beams: int, split: Splitter):
    reference, made = pair(name, split)
    source = "input_ids" if name == "t5" else "input_features"
    inputs = SPECIMENS[name].build()[1][source]
    told = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        expected = reference.generate(inputs, **told)
        assert torch.equal(made.model.generate(on_lead(inputs, made), **told).cpu(), expected)


def test_a_conversation_goes_on_with_the_cache_that_was_returned(split: Splitter):
    reference, made = pair("llama-2", split)
    tokens = [SPECIMENS["llama-2"].build()[1]["input_ids"][:1, :3]] * 2
    caches: list[Any] = [None, None]
    for _ in range(2):
        for place, (model, lead) in enumerate([(reference, tokens[0]), (made.model, on_lead(tokens[1], made))]):
            found = generated(model, lead, "returned", past_key_values=caches[place])
            tokens[place], caches[place] = found.sequences.cpu(), found.past_key_values
        assert torch.equal(tokens[0], tokens[1])
    assert_same_cache(*caches)
