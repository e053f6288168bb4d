"""Which modules are placed: the model's layers, found without knowing the model.

model
|- embeddings          holds parameters, no chain inside      -> a layer
|- encoder
|  |- layer = ModuleList of 12 alike: a chain                 -> its 12 elements are layers
|- head                                                       -> a layer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from poolrt.runtime.state.paths import joined


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that is placed as a whole."""

    name: str
    module: nn.Module


def find_layers(model: nn.Module, at_least: int) -> list[Layer]:
    """The layers of `model` in order of registration; long chains stay coarse, short ones are opened up.

    A model that has all its parameters itself, a single linear layer say, is its own layer, with no name.

    Args:
        model: any module.
        at_least: how many elements a chain must have to be cut between them; a shorter one is opened if its elements
            hold chains themselves (a ResNet's stages).
    """
    layers: list[Layer] = []
    seen: set[int] = set()

    def visit(module: nn.Module, name: str, whole: bool) -> None:
        if id(module) in seen or not _has_parameters(module):
            return
        if module is not model and (whole or not (_is_container(module) or _holds_chain(module))):
            seen.add(id(module))
            layers.append(Layer(name, module))
            return
        long_chain = _is_chain(module) and len(list(module.children())) >= at_least
        for child_name, child in module.named_children():
            visit(child, joined(name, child_name), long_chain)

    visit(model, "", False)
    if not layers and _has_parameters(model):
        return [Layer("", model)]
    return _without_shared_modules(layers)


def _without_shared_modules(layers: list[Layer]) -> list[Layer]:
    """Two layers that hold one module cannot both have it on their card: they are opened until it is a layer itself."""
    while True:
        holders = Counter(inner for layer in layers for inner in set(layer.module.modules()) if _has_parameters(inner))
        sharing = [layer for layer in layers if any(holders[inner] > 1 for inner in set(layer.module.modules()))]
        if not sharing:
            return layers
        parts = [part for layer in layers for part in (_split(layer, holders) if layer in sharing else [layer])]
        layers = list({part.module: part for part in [*parts, *reversed(parts)]}.values())


def _split(layer: Layer, holders: Counter[nn.Module]) -> list[Layer]:
    """The layer itself if it is what others share, else its children."""
    return [layer] if holders[layer.module] > 1 else opened(layer)


def layers_named(model: nn.Module, names: Iterable[str]) -> list[Layer]:
    """The layers of a plan made earlier.

    Raises:
        AttributeError: if the model has no module of such a name.
    """
    return [Layer(name, model.get_submodule(name)) for name in names]


def opened(layer: Layer) -> list[Layer]:
    """The children of a layer that the model reaches past (it calls the children, never the layer itself)."""
    return [
        Layer(joined(layer.name, name), child)
        for name, child in layer.module.named_children()
        if _has_parameters(child)
    ]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict))


def _holds_chain(module: nn.Module) -> bool:
    return any(_is_chain(inner) for inner in module.modules())


def _is_chain(module: nn.Module) -> bool:
    """A ModuleList or Sequential whose elements are mostly of one class."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2 or not _has_parameters(module):
        return False
    ((_, most),) = Counter(type(child) for child in module).most_common(1)
    return most >= max(2, len(module) - 1)


def unique_tensors(tensors: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Each tensor once, by identity."""
    seen: set[int] = set()
    for tensor in tensors:
        if tensor is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
