"""Caches of keys and values of layers that run on several cards: each card keeps its own heads.

    the user's cache      layers[i]  becomes  SplitLayer( part of card 0, part of card 1 )
    the module on card c  is given a CardView of the cache, which shows it part c alone

A cache is whatever looks like one of transformers': it has `update` and `layers`, or two such caches (one for the
decoder itself and one for what it reads of the encoder). Lengths and masks are asked of part 0; what is done to the
cache from outside (another order of beams, cutting it shorter) is done to every part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from poolrt.errors import ModelError
from poolrt.runtime.regions.forked import ForkedModule


def with_caches(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A split module's forward that may be called with caches; others stay as they are."""
    if not isinstance(forward, ForkedModule):
        return forward
    replicas = cast("list[Any]", forward.replicas)
    replicas[:] = [_OnCard(replica, card, len(replicas)) for card, replica in enumerate(replicas)]

    def cached(*args: Any, **kwargs: Any) -> Any:
        hidden = [_hidden(value) for value in args]
        return forward(*hidden, **{name: _hidden(value) for name, value in kwargs.items()})

    return cached


class _Hidden:
    """A cache on its way to the cards: a constant to all who look for tensors."""

    __slots__ = ("cache",)

    def __init__(self, cache: Any) -> None:
        self.cache = cache


def _hidden(value: Any) -> Any:
    return _Hidden(value) if is_cache(value) else value


def is_cache(value: Any) -> bool:
    """Whether it looks like a cache of keys and values of transformers."""
    if isinstance(value, (Tensor, tuple, list, dict, str, int, float, type(None))):
        return False
    return callable(getattr(value, "update", None)) and hasattr(value, "get_seq_length")


class _OnCard:
    """A replica that shows its module caches as they are on its card."""

    def __init__(self, replica: Callable[..., Any], card: int, cards: int) -> None:
        self.replica, self._card, self._cards = replica, card, cards

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shown = [self._shown(value) for value in args]
        return self.replica(*shown, **{name: self._shown(value) for name, value in kwargs.items()})

    def _shown(self, value: Any) -> Any:
        return CardView(value.cache, self._card, self._cards) if isinstance(value, _Hidden) else value


class CardView:
    """A cache as one card sees it. To a module it is of the cache's own class."""

    def __init__(self, cache: Any, card: int, cards: int) -> None:
        self._cache, self._card, self._cards = cache, card, cards

    @property
    def __class__(self) -> Any:  # type: ignore[override]  # modules ask isinstance(cache, EncoderDecoderCache)
        return type(self._cache)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Add to what this card keeps of the layer, and return all it has: the cache's own `update`."""
        return self._part(layer_idx).update(keys, values, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Length of what this card keeps of the layer."""
        known = layer_idx < len(self._cache.layers) if hasattr(self._cache, "layers") else True
        if not known:
            return 0
        return (
            self.self_attention_cache.get_seq_length(layer_idx)
            if self._is_pair
            else self._part(layer_idx).get_seq_length()
        )

    @property
    def layers(self) -> _Parts:
        """This card's part of each layer."""
        return _Parts(self)

    @property
    def self_attention_cache(self) -> CardView:
        """Of a pair of caches, the decoder's own."""
        return CardView(self._cache.self_attention_cache, self._card, self._cards)

    @property
    def cross_attention_cache(self) -> CardView:
        """Of a pair of caches, that of what the decoder reads of the encoder."""
        return CardView(self._cache.cross_attention_cache, self._card, self._cards)

    @property
    def is_updated(self) -> _Updated:
        """Of a pair of caches, which layers have read the encoder: this card's."""
        return _Updated(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    @property
    def _is_pair(self) -> bool:
        return hasattr(self._cache, "cross_attention_cache")

    def _part(self, layer_idx: int) -> Any:
        return split_layer(self._cache, layer_idx, self._cards).parts[self._card]


class _Parts:
    def __init__(self, view: CardView) -> None:
        self._view = view

    def __getitem__(self, layer_idx: int) -> Any:
        return self._view._part(layer_idx)

    def __len__(self) -> int:
        return len(self._view._cache.layers)


class _Updated:
    """The pair's own flags are set when the first card has filled its part; the others have to fill theirs yet."""

    def __init__(self, view: CardView) -> None:
        self._view = view

    def get(self, layer_idx: int) -> bool:
        """Whether this card's part of the layer has been filled."""
        crossing = self._view.cross_attention_cache
        known = layer_idx < len(crossing.layers)
        return bool(self._view._cache.is_updated.get(layer_idx)) and known and crossing._part(layer_idx).is_initialized

    def __setitem__(self, layer_idx: int, value: bool) -> None:
        self._view._cache.is_updated[layer_idx] = value


class SplitLayer:
    """One layer of a cache whose heads lie on several cards. To others it is of the class of its parts."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.__dict__["parts"] = tuple(parts)

    @property
    def __class__(self) -> Any:  # type: ignore[override]  # a cache asks its layers what they are
        return type(self.parts[0])

    @property
    def keys(self) -> Tensor | None:
        """All heads, on the lead card; those that several cards keep come once per card."""
        return self._whole("keys")

    @property
    def values(self) -> Tensor | None:
        """All heads, on the lead card; those that several cards keep come once per card."""
        return self._whole("values")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = getattr(self.parts[0], name)
        return self._of_all(name) if name in _CHANGING else own

    def __setattr__(self, name: str, value: Any) -> None:
        raise ModelError(
            f"{name!r} of a cache's layer cannot be set: its heads lie on {len(self.parts)} cards; change its parts, "
            "or start from an empty cache"
        )

    def _of_all(self, name: str) -> Callable[..., None]:
        def all_parts(*args: Any, **kwargs: Any) -> None:
            for part in self.parts:
                getattr(part, name)(*args, **kwargs)

        return all_parts

    def _whole(self, name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in self.parts]
        if any(tensor is None for tensor in tensors):
            return None
        return torch.cat([tensor.to(tensors[0].device) for tensor in tensors], 1)


_CHANGING = frozenset(
    ["reorder_cache", "crop", "reset", "batch_repeat_interleave", "batch_select_indices", "offload", "prefetch"]
    + ["activate_past_recording"]
)
"""what is done to every part"""


def split_layer(cache: Any, layer_idx: int, cards: int) -> SplitLayer:
    """The layer of the cache, split from now on.

    Raises:
        ModelError: if it holds keys and values of a run that was not split.
    """
    make = getattr(cache, "layer_class_to_replicate", None)
    while make is not None and len(cache.layers) <= layer_idx:
        cache.layers.append(make())
    layer = cache.layers[layer_idx]
    if type(layer) is not SplitLayer:
        layer = cache.layers[layer_idx] = SplitLayer([_empty(layer, cache) for _ in range(cards)])
    return layer


def _empty(layer: Any, cache: Any) -> Any:
    """A part for one card, that takes its form from the first keys it is given."""
    if getattr(layer, "is_initialized", False) and int(layer.get_seq_length()) > 0:
        raise ModelError(
            f"a {type(cache).__name__} that another model filled was given to a model whose heads lie on several "
            "cards; give it an empty one"
        )
    part = copy.copy(layer)
    part.keys = part.values = None
    part.is_initialized = False
    return part
