"""Which heads of keys and values each card keeps: seen by giving a region a cache that notes what it is given.

    whole     keys  0 1 2 3        the region as it is
    card 0    keys  0 1            its replicas, with the same weights:
    card 1    keys      2 3        what they give are these of the whole's heads

With random weights no two heads are alike, so every card's heads are told apart from all others by their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.probe import Call, differs
from poolrt.runtime.regions.plan import CacheSplit
from poolrt.runtime.state.trees import flatten

Noting = Callable[[Any], object]
"""runs a region once with this cache"""


class NotedLayer:
    """A layer of a cache that keeps what it is given, and nothing of before."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.updates = 0

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep these."""
        self.keys, self.values, self.updates = keys, values, self.updates + 1
        return keys, values


class NotedCache:
    """A cache of one layer that notes what a region gives it; of self-attention and cross-attention alike."""

    def __init__(self) -> None:
        self.layers = [NotedLayer()]
        self.is_updated: dict[int, bool] = {}

    @property
    def self_attention_cache(self) -> NotedCache:
        """As caches of encoder-decoder models have it."""
        return self

    @property
    def cross_attention_cache(self) -> NotedCache:
        """As caches of encoder-decoder models have it."""
        return self

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep these, whatever layer they are of."""
        return self.layers[0].update(keys, values)

    def get_seq_length(self, *args: Any) -> int:
        """Nothing of before."""
        return 0

    def get_query_offset(self, *args: Any) -> int:
        """The first query is the first."""
        return 0


def with_cache(call: Call, path: str, cache: Any) -> Call:
    """The call with a cache as its argument `path`: 0.2 for a positional one, 1.name for a named one."""
    args, kwargs = call
    kind, _, name = path.partition(".")
    if kind == "1":
        return args, {**kwargs, name: cache}
    return tuple(cache if place == int(name) else value for place, value in enumerate(args)), kwargs


def cache_split_of(
    call: Call, whole: Callable[[Call], object], on_card: Sequence[Callable[[Call], object]], tolerance: float
) -> CacheSplit | None:
    """How keys and values of a region are dealt out; None if it takes no cache, or one that is not understood.

    Args:
        call: a call of the region, without a cache.
        whole: runs the region.
        on_card: for each card, runs its replica.
        tolerance: of what is equal, relative to the largest value.
    """
    for path in (path for path, value in flatten(call).constants if value is None and path.count(".") == 1):
        noted = _noted(call, path, whole)
        if noted is None:
            continue
        parts = [_noted(call, path, run) for run in on_card]
        try:
            keys, values = (_dealt_like(noted, parts, name, tolerance) for name in ("keys", "values"))
        except _NotDealtError:
            return None
        return CacheSplit(argument=path, keys=keys, values=values)
    return None


class _NotDealtError(Exception):
    """The cards' keys or values are none of the whole's."""


def _noted(call: Call, path: str, run: Callable[[Call], object]) -> NotedLayer | None:
    """What a region gives a cache that it finds as this argument; None if that is no place for one."""
    cache = NotedCache()
    try:
        run(with_cache(call, path, cache))
    except Exception:  # whatever a region's Python raises that finds a cache where it wants something else
        return None
    (layer,) = cache.layers
    return layer if layer.updates == 1 else None


def _dealt_like(whole: NotedLayer, parts: Sequence[NotedLayer | None], name: str, tolerance: float) -> Split | None:
    """The split of keys or values; None if every card has all."""
    tensor: Tensor = getattr(whole, name)
    pieces: list[Tensor] = [getattr(part, name) for part in parts if part is not None]
    if len(pieces) < len(parts):
        raise _NotDealtError
    if all(not differs(tensor, piece, tolerance) for piece in pieces):
        return None
    for dim in range(tensor.dim()):
        indices = _places(tensor, pieces, dim, tolerance)
        if indices is not None:
            return Split.from_indices(indices, dim)
    raise _NotDealtError


def _places(whole: Tensor, pieces: Sequence[Tensor], dim: int, tolerance: float) -> list[list[int]] | None:
    """By card: where along `dim` the slices of its piece stand in the whole; None if they do not, or leave one out.

    Heads that a model repeats for several queries are alike; a card then has those that no card before it has.
    """
    if any(piece.dim() != whole.dim() or not piece.shape[dim] for piece in pieces):
        return None
    if any(piece.movedim(dim, 0).shape[1:] != whole.movedim(dim, 0).shape[1:] for piece in pieces):
        return None
    taken: set[int] = set()
    found: list[list[int]] = []
    for piece in pieces:
        places: list[int] = []
        for mine in piece.unbind(dim):
            after = places[-1] if places else -1
            alike = [
                place
                for place, theirs in enumerate(whole.unbind(dim))
                if place > after and not differs(theirs, mine, tolerance)
            ]
            if not alike:
                return None
            places.append(next((place for place in alike if place not in taken), alike[0]))
        taken.update(places)
        found.append(places)
    return found if len(taken) == whole.shape[dim] else None
