"""Nested values are taken apart and put together again as the same kinds of things."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.state.trees import flatten, is_plain, map_tensors


class Pair(NamedTuple):
    left: Tensor
    right: Any


@dataclasses.dataclass
class Box:
    content: Any
    label: str = "box"


@dataclasses.dataclass(frozen=True)
class Sealed:
    content: Any


class Cache:
    """An object with a state of its own, as key-value caches are."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [types.SimpleNamespace(keys=keys)]
        self.seen = 3


def ones() -> Tensor:
    return torch.ones(2)


def doubled(value: Any) -> Any:
    tree = flatten(value)
    return tree.rebuild([2 * t for t in tree.tensors])


def paths(value: Any, **options: Any) -> list[str]:
    return [leaf.path for leaf in flatten(value, **options).leaves]


def test_paths_tell_where_a_tensor_stands() -> None:
    value = {"loss": ones(), "states": (ones(), [ones()]), "box": Box(Pair(ones(), None)), 7: ones()}
    assert paths(value) == ["loss", "states.0", "states.1.0", "box.content.0", "7"]


def test_a_tensor_by_itself() -> None:
    assert paths(ones()) == [""]
    torch.testing.assert_close(doubled(ones()), 2 * ones())


@pytest.mark.parametrize(
    "value",
    [
        (ones(),),
        [ones(), "word", None, 3],
        {"a": ones(), "b": 1.5},
        collections.OrderedDict(a=ones()),
        collections.UserDict(a=ones()),
        collections.defaultdict(list, a=ones()),
        types.MappingProxyType({"a": ones()}),
        Pair(ones(), ones()),
        Box(ones()),
        Sealed([ones()]),
        Box({"deep": (Sealed(ones()),)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_keep_their_kind_and_the_original_its_tensors(value: Any) -> None:
    new = doubled(value)
    assert type(new) is type(value)
    assert all(torch.equal(t, 2 * ones()) for t in flatten(new).tensors)
    assert all(torch.equal(t, ones()) for t in flatten(value).tensors)
    assert flatten(new).difference(flatten(value)) is None


def test_a_defaultdict_keeps_its_factory() -> None:
    assert doubled(collections.defaultdict(list, a=ones()))["new"] == []


def test_named_results_of_torch() -> None:
    result = torch.max(torch.eye(3), dim=0)
    new = doubled(result)
    assert type(new) is type(result)
    assert torch.equal(new.values, 2 * result.values)


def test_a_packed_sequence_keeps_its_batch_sizes() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(1, 2), torch.ones(3, 2)], enforce_sorted=False)
    assert paths(packed) == ["data", "sorted_indices", "unsorted_indices"]
    new = map_tensors(packed, lambda t: t + 1)
    assert type(new) is type(packed)
    assert torch.equal(new.data, packed.data + 1)
    assert new.batch_sizes is packed.batch_sizes
    assert torch.equal(new.unsorted_indices, packed.unsorted_indices + 1)


def test_model_output_agrees_with_itself_as_attributes_and_as_items() -> None:
    from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

    output = MaskedLMOutput(loss=torch.ones(()), logits=ones(), hidden_states=(ones(), ones()))
    assert paths(output) == ["loss", "logits", "hidden_states.0", "hidden_states.1"]
    new = doubled(output)
    assert isinstance(new, MaskedLMOutput)
    assert torch.equal(new.logits, 2 * ones())
    assert new["logits"] is new.logits
    assert new[0] is new.loss
    assert new.attentions is None
    assert "attentions" not in new
    assert torch.equal(doubled(BaseModelOutput(last_hidden_state=ones()))[0], 2 * ones())


def test_batch_encoding() -> None:
    from transformers import BatchEncoding

    new = doubled(BatchEncoding({"input_ids": ones()}))
    assert isinstance(new, BatchEncoding)
    assert torch.equal(new["input_ids"], 2 * ones())


def test_nothing_to_change_gives_the_value_itself() -> None:
    value = {"a": [ones()], "cache": Cache(ones())}
    assert map_tensors(value, lambda t: t) is value


def test_values_without_tensors() -> None:
    for value in ({}, [], (), None, "text", 3, Box(None)):
        assert flatten(value).leaves == ()
        assert flatten(value).rebuild([]) == value


def test_an_object_with_state_is_walked_only_where_asked() -> None:
    cache = Cache(ones())
    tree = flatten({"cache": cache})
    assert tree.has_state
    assert tree.leaves == ()
    assert tree.rebuild([])["cache"] is cache
    walked = flatten({"logits": ones(), "cache": cache}, into_state=True)
    assert [(leaf.path, leaf.in_state) for leaf in walked.leaves] == [("logits", False), ("cache.layers.0.keys", True)]
    new = walked.rebuild([ones(), 2 * ones()])["cache"]
    assert new is not cache
    assert torch.equal(new.layers[0].keys, 2 * ones())
    assert torch.equal(cache.layers[0].keys, ones())
    assert new.seen == 3


def test_what_is_no_state() -> None:
    for value in (nn.Linear(1, 1), torch.float32, ones, Cache, slice(1), torch.Size([1]), torch.Generator()):
        tree = flatten([value], into_state=True)
        assert not tree.has_state
        assert tree.rebuild([])[0] is value


def test_a_cycle_ends() -> None:
    ring: list[Any] = [ones()]
    ring.append(ring)
    assert paths(ring) == ["0"]
    new = doubled(ring)
    assert torch.equal(new[0], 2 * ones())
    assert new[1] is ring
    cache = Cache(ones())
    cache.itself = cache
    assert paths(cache, into_state=True) == ["layers.0.keys"]


def test_a_tensor_that_stands_in_two_places_is_met_twice() -> None:
    shared = ones()
    assert paths([shared, {"again": shared}]) == ["0", "1.again"]


def test_the_caches_of_transformers() -> None:
    from transformers import DynamicCache, EncoderDecoderCache

    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.ones(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), layer)
    tree = flatten(EncoderDecoderCache(cache, DynamicCache()), into_state=True)
    assert len(tree.leaves) == 4
    assert all(leaf.in_state for leaf in tree.leaves)
    new = tree.rebuild([torch.cat([t, t]) for t in tree.tensors])
    assert new.self_attention_cache.layers[1].keys.shape == (4, 1, 3, 4)
    assert cache.layers[1].keys.shape == (2, 1, 3, 4)
    new.self_attention_cache.update(torch.ones(4, 1, 1, 4), torch.ones(4, 1, 1, 4), 0)
    assert new.get_seq_length() == 4
    assert cache.get_seq_length() == 3


@pytest.mark.parametrize(
    ("left", "right", "path"),
    [
        ({"n": 1}, {"n": 2}, "n"),
        ({"n": 1}, {"n": 1.0}, "n"),
        ({"n": 1}, {"m": 1}, "n"),
        ([1, 2], [1], "1"),
        ([1], [1, 2], "1"),
        ({"a": ones()}, {"b": ones()}, "a"),
        ({"a": ones()}, {"a": ones(), "b": ones()}, "b"),
        ({"a": ones()}, {"a": 1.0}, "a"),
        ({"a": object()}, {"a": object()}, "a"),
        ([float("nan"), "x"], [float("nan"), "y"], "1"),
    ],
)
def test_the_first_difference_besides_tensors(left: Any, right: Any, path: str) -> None:
    assert flatten(left).difference(flatten(right)) == path
    assert flatten(left).difference(flatten(left)) is None


def test_what_tensors_hold_is_no_difference() -> None:
    assert flatten([ones(), 1, "a"]).difference(flatten([torch.zeros(7), 1, "a"])) is None
    assert flatten(Cache(ones()), into_state=True).difference(flatten(Cache(ones()), into_state=True)) is None


def test_constants_that_cannot_be_compared_differ() -> None:
    numpy = pytest.importorskip("numpy")
    assert flatten([numpy.ones(2)]).difference(flatten([numpy.ones(2)])) == "0"


def test_plain_values_are_told_from_others_by_what_they_are_made_of():
    here = torch.ones(2)
    plain = ({"x": [here, None, 1, 2.5, "text", torch.float32]}, ())
    assert is_plain(plain, lambda tensor: tensor is here)
    assert not is_plain(plain, lambda tensor: tensor is not here)
    assert not is_plain((Cache(here),), lambda tensor: True)
    assert not is_plain(object(), lambda tensor: True)
