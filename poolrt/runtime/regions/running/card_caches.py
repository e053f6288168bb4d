"""Key-value caches of split attention: each card keeps the keys and values of its own heads.

The cache stays the user's, and its layers stay in it; a layer that split attention fills lies on all cards from then
on. What a card's replica is given is the same cache as that card sees it:

    the user's cache        layers  [ 0: in parts ]         [ 1: in parts ]         [ 2: as it was ]
    as card 0 sees it               [ card 0's part of 0 ]  [ card 0's part of 1 ]  ...
    as card 1 sees it               [ card 1's part of 0 ]  [ card 1's part of 1 ]  ...

Nothing is kept between calls but in the user's cache: it may be copied, cut, reordered, emptied or filled by anyone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from poolrt.errors import ModelError
from poolrt.runtime.regions.plan import CacheSplit
from poolrt.runtime.regions.running.layer_in_parts import in_parts, is_in_parts
from poolrt.runtime.state.trees import flatten


def is_cache(value: Any) -> bool:
    """Whether this is a key-value cache, as transformers has them."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update") and not isinstance(value, type)


def cache_on_card(cache: Any, card: int, devices: Sequence[torch.device], split: CacheSplit | None) -> Any:
    """The cache as one card sees it, for one call of a region.

    What the region writes into containers of the lead card's is in the user's cache, too; other cards have their own.

    Args:
        cache: the user's; layers of it that the region reads or fills lie on all cards afterwards.
        card: which one.
        devices: of all cards, the lead card's first.
        split: which heads of keys and values are whose; None if that is not known.

    Raises:
        ModelError: if it keeps keys and values in another way than in layers.
    """
    if not any(name == "layers" or is_cache(value) for name, value in vars(cache).items()):
        raise ModelError(
            f"a {type(cache).__name__} keeps keys and values in no layers: split attention cannot tell which are "
            "whose; use a cache of transformers, as DynamicCache or StaticCache"
        )
    seen = copy.copy(cache)
    for name, value in vars(cache).items():
        if name == "layers":
            seen.__dict__[name] = _CardLayers(value, card, tuple(devices), split)
        elif is_cache(value):
            seen.__dict__[name] = cache_on_card(value, card, devices, split)
        elif isinstance(value, (dict, list, set)):
            _check_nothing_kept(cache, name, value)
            seen.__dict__[name] = copy.copy(value) if card else value
    return seen


def _check_nothing_kept(cache: Any, name: str, value: Iterable[Any]) -> None:
    if flatten(value).tensors:
        raise ModelError(
            f"a {type(cache).__name__} keeps tensors in {name}, and not in layers as caches of transformers do: split "
            "attention cannot tell which are whose; use a DynamicCache or StaticCache"
        )


class _CardLayers(Sequence[Any]):
    """The layers of the user's cache as one card sees them."""

    def __init__(
        self, layers: list[Any], card: int, devices: tuple[torch.device, ...], split: CacheSplit | None
    ) -> None:
        self._layers, self._card, self._devices, self._split = layers, card, devices, split

    def __len__(self) -> int:
        return len(self._layers)

    def append(self, layer: Any) -> None:
        """Caches grow while they are filled for the first time."""
        self._layers.append(layer)

    def __iter__(self) -> Iterator[Any]:
        """Looking through all layers leaves those of whole attention as they are."""
        return iter([layer.part(self._card) if is_in_parts(layer) else layer for layer in self._layers])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        layer = self._layers[index]
        if not is_in_parts(layer):
            layer = self._layers[index] = in_parts(layer, self._devices, self._split)
        elif not layer.lies_on(self._devices, self._split):
            layer = self._layers[index] = in_parts(layer.whole(), self._devices, self._split)
        return layer.part(self._card)
