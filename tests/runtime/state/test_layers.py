"""Which modules are placed, for models that poolrt has never heard of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Perceptron, Tied

from poolrt.runtime.state.layers import Layer, find_layers, opened, unique_tensors


def names(model: nn.Module, at_least: int = 4) -> list[str]:
    return [layer.name for layer in find_layers(model, at_least)]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{index}" for index in range(count)]


EXPECTED: dict[str, list[str]] = {
    "bert": ["bert.embeddings", *numbered("bert.encoder.layer", 4), "cls"],
    "gpt2": ["transformer.wte", "transformer.wpe", *numbered("transformer.h", 4), "transformer.ln_f", "lm_head"],
    "llama": ["model.embed_tokens", *numbered("model.layers", 4), "model.norm", "lm_head"],
    "mixtral": ["model.embed_tokens", *numbered("model.layers", 4), "model.norm", "lm_head"],
    "vit": ["vit.embeddings", *numbered("vit.layers", 4), "vit.layernorm", "classifier"],
    "albert": ["albert", "predictions"],
    "tied": ["embedding", *numbered("blocks", 4), "head"],
}
"""where a chain has as many elements as are needed"""


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_of_known_models(name: str) -> None:
    found = names(next(specimen for specimen in ZOO if specimen.name == name).make())
    assert found[: len(EXPECTED[name])] == EXPECTED[name]


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_encoders_and_decoders_are_two_chains(name: str) -> None:
    model = next(specimen for specimen in ZOO if specimen.name == name).make()
    found = names(model, at_least=3)
    chains = [
        child for child, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == 3
    ]
    blocks = [chain for chain in chains if chain.split(".")[-1] in ("block", "layers")]
    assert len(blocks) == 2
    assert all(set(numbered(chain, 3)) <= set(found) for chain in blocks)


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_every_parameter_is_in_one_layer_or_in_none(specimen: object) -> None:
    model = specimen.make()
    layers = find_layers(model, 4)
    owners: dict[nn.Module, str] = {}
    for layer in layers:
        for module in layer.module.modules():
            assert owners.setdefault(module, layer.name) == layer.name
        assert next(layer.module.parameters(), None) is not None
        assert model.get_submodule(layer.name) is layer.module
    loose = [
        name
        for module_name, module in model.named_modules()
        if module not in owners
        for name in (f"{module_name}.{own}" for own, _ in module.named_parameters(recurse=False))
    ]
    assert all(name.split(".")[-1] in ("cls_token", "position_embeddings", "bias") for name in loose), loose


def test_a_plain_chain() -> None:
    assert names(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == ["0", "2"]
    assert names(Perceptron()) == [f"layers.{index}" for index in (0, 2, 4, 6)]


def test_a_hand_written_model_without_chains() -> None:
    class Handmade(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.act, self.head = nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)

    assert names(Handmade()) == ["body", "head"]


def test_one_module_is_its_own_layer_without_a_name() -> None:
    assert names(nn.Linear(2, 2)) == [""]


def test_torchs_transformer() -> None:
    assert names(nn.Transformer(4, 2, 2, 2, 8), at_least=2) == [
        *numbered("encoder.layers", 2),
        "encoder.norm",
        *numbered("decoder.layers", 2),
        "decoder.norm",
    ]


class Stage(nn.Module):
    """As in a ResNet: a stage is a chain of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_a_short_chain_of_chains_is_opened_and_a_long_one_is_not() -> None:
    model = nn.Sequential(*(Stage() for _ in range(3)))
    assert names(model, at_least=4) == [f"{stage}.blocks.{block}" for stage in range(3) for block in range(2)]
    assert names(model, at_least=3) == ["0", "1", "2"]


def test_a_module_registered_twice_is_one_layer() -> None:
    model = nn.Module()
    model.first = nn.Linear(2, 2)
    model.again = model.first
    assert names(model) == ["first"]


class Sharing(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.adapter = nn.ModuleDict({"inner": shared})


def test_layers_that_hold_one_module_are_opened_until_it_is_a_layer() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(Sharing(shared), Sharing(shared), nn.Linear(2, 2), Sharing(nn.Linear(2, 2)))
    assert names(model) == ["0.own", "0.adapter.inner", "1.own", "2", "3"]


def test_a_layer_that_others_hold_stays_whole() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, Sharing(shared))
    assert names(model) == ["0", "1.own"]


def test_a_layer_whose_children_are_called_in_its_stead_is_opened() -> None:
    layer = Layer("body", nn.ModuleDict({"a": nn.Linear(2, 2), "act": nn.ReLU(), "b": nn.Linear(2, 2)}))
    assert [part.name for part in opened(layer)] == ["body.a", "body.b"]
    assert [part.name for part in opened(Layer("", layer.module))] == ["a", "b"]


def test_tied_weights_are_two_layers() -> None:
    assert {"embedding", "head"} <= set(names(Tied()))


@pytest.mark.parametrize("make", [nn.ReLU, lambda: nn.Sequential(nn.ReLU()), nn.Module])
def test_without_parameters_there_is_nothing_to_place(make: Callable[[], nn.Module]) -> None:
    assert names(make()) == []


def test_tensors_once_each() -> None:
    a, b = torch.ones(1), torch.ones(1)
    found: list[Tensor] = list(unique_tensors([a, None, b, a]))
    assert len(found) == 2
    assert found[0] is a
    assert found[1] is b
