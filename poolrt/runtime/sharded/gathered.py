"""Operators that need the whole: it is gathered on the first card, and what they write is scattered again."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from poolrt.runtime.sharded.facts import written_arguments
from poolrt.runtime.sharded.tensor import Sharded


def run_on_whole(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` with plain tensors in place of sharded ones; a sharded argument that it writes has its values after.

    Raises:
        torch.OutOfMemoryError: if the first card has no room for the whole.
    """
    wholes: dict[int, Tensor] = {}

    def plain(value: Any) -> Any:
        if not isinstance(value, Sharded):
            return value
        if id(value) not in wholes:
            wholes[id(value)] = value.whole()
        return wholes[id(value)]

    result = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    touched = tree_iter(list(written_arguments(func, args, kwargs)))
    written = {id(value): value for value in touched if isinstance(value, Sharded)}
    for value in written.values():
        value.write(wholes[id(value)])
    given_back = {id(wholes[key]): value for key, value in written.items()}
    return tree_map(lambda value: given_back.get(id(value), value), result)
