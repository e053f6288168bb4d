"""Key-value caches of split attention: each card keeps the keys and values of its own heads.

    cache of the model    layer 0: heads of card 0    layer 1: heads of card 0    layer 2: all heads (one card alone)
    twin                  layer 0: heads of card 1    layer 1: heads of card 1    layer 2: empty

The cache that the model was given is the lead cards'. The other cards have a twin each, which goes where the cache
goes: what reorders, cuts or empties the cache (beam search, assisted generation) does the same to the twins.
"""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any

from torch import nn

from poolrt.errors import ModelError
from poolrt.runtime.trees import OwnMethod

_MOVES = ("reorder_cache", "crop", "reset", "batch_repeat_interleave", "batch_select_indices")
_twins: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def is_cache(value: Any) -> bool:
    """Whether this is a key-value cache, as transformers has them."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def layer_in_caches(module: nn.Module) -> int:
    """Which of a cache's layers an attention module fills; 0 for one that does not say."""
    found = (getattr(inner, "layer_idx", None) for inner in module.modules())
    return next((index for index in found if isinstance(index, int)), 0)


def caches_of(cache: Any, cards: int, layer: int = 0) -> list[Any]:
    """The cache and its twins, one for each card of a stage.

    Args:
        cache: that the model was given.
        cards: of the stage.
        layer: of the cache, which is about to be filled by those cards.

    Raises:
        ModelError: if that layer was filled before it was split, or comes from several micro-batches.
    """
    with _making:
        twins = _twins.get(cache)
        if twins is None:
            if cache.get_seq_length(layer):
                raise ModelError(
                    f"layer {layer} of a {type(cache).__name__} holds keys of cards that are no longer known: it was "
                    "filled before the model was split, or comes back from a forward that learns or ran in several "
                    "micro-batches; begin with an empty one"
                )
            twins = _twins[cache] = []
            for name in _MOVES:
                if hasattr(cache, name):
                    setattr(cache, name, _MoveTogether(cache, name))
        while len(twins) < cards - 1:
            twins.append(_emptied(cache))
    return [cache, *twins[: cards - 1]]


def _emptied(cache: Any) -> Any:
    """A cache of the same form that holds nothing; layers that others filled are theirs."""
    bare = copy.copy(cache)
    for name in _MOVES:
        vars(bare).pop(name, None)
    twin = copy.deepcopy(bare)
    twin.reset()
    return twin


class _MoveTogether(OwnMethod):
    """What moves the entries of a cache moves those of its twins likewise."""

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = weakref.ref(cache), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do it to all."""
        cache = self._cache()
        for twin in _twins.get(cache, ()):
            getattr(twin, self._name)(*args, **kwargs)
        return getattr(type(cache), self._name)(cache, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _MoveTogether:
        """Of the copy of the cache that is in the making, which gets copies of the twins."""
        cache = self._cache()
        copied = memo[id(cache)]
        if copied not in _twins:
            _twins[copied] = [copy.deepcopy(twin, memo) for twin in _twins[cache]]
        return _MoveTogether(copied, self._name)
