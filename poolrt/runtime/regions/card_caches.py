"""Key-value caches of split attention: each card keeps the keys and values of its own heads.

The cache that the model was given is the lead card's. The other cards have a twin each, which goes where the cache
goes: what reorders, cuts or empties the cache (beam search, assisted generation) does the same to the twins.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from typing import Any

from poolrt.errors import ModelError

_MOVES = ("reorder_cache", "crop", "reset", "batch_repeat_interleave", "batch_select_indices")
_twins: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def is_cache(value: Any) -> bool:
    """Whether this is a key-value cache, as transformers has them."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def caches_of(cache: Any, cards: int) -> list[Any]:
    """The cache and its twins, one for each card.

    Raises:
        ModelError: if the cache was filled before the model was split.
    """
    with _making:
        if cache not in _twins:
            if cache.get_seq_length():
                raise ModelError(
                    f"a {type(cache).__name__} that was filled before the model was split holds all heads on one card; "
                    "begin with an empty one"
                )
            _twins[cache] = [copy.deepcopy(cache) for _ in range(cards - 1)]
            _move_together(cache, _twins[cache])
    return [cache, *_twins[cache]]


def _move_together(cache: Any, twins: list[Any]) -> None:
    for name in _MOVES:
        if hasattr(cache, name):
            setattr(cache, name, functools.partial(_move_all, weakref.ref(cache), name, twins))


def _move_all(cache: Any, name: str, twins: list[Any], *args: Any, **kwargs: Any) -> Any:
    for twin in twins:
        getattr(twin, name)(*args, **kwargs)
    return getattr(type(cache()), name)(cache(), *args, **kwargs)
