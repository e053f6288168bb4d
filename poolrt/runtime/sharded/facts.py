"""What an operator's schema says: which arguments it writes, and whether it works element by element."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

# Element by element too, though not tagged so (some of them in one supported torch, some in another).
_IN_PLACE_TOO = ("masked_fill", "lerp", "floor_divide", "addcmul", "addcdiv")
_ELEMENTWISE = frozenset(
    ["clone", "copy_", "zero_", "fill_", "zeros_like", "ones_like", "empty_like", "full_like"]
    + [name + ending for name in _IN_PLACE_TOO for ending in ("", "_")]
)
_LISTS = ("_foreach_", "_fused_", "_amp_foreach_")


@cache
def name_of(func: Any) -> str:
    """The operator's name without namespace and overload: `add_`."""
    return str(func._schema.name).rpartition("::")[2]


@cache
def is_elementwise(func: Any) -> bool:
    """Whether an element of the one result depends on the same element of the arguments only, and on no generator."""
    tagged = torch.Tag.pointwise in func.tags or name_of(func) in _ELEMENTWISE
    returns = func._schema.returns
    single = len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)
    return tagged and single and torch.Tag.nondeterministic_seeded not in func.tags


@cache
def is_over_lists(func: Any) -> bool:
    """Whether it is one of the operators with which optimizers step many tensors at once."""
    return name_of(func).startswith(_LISTS)


@cache
def changes_shape(func: Any) -> bool:
    """Whether it makes its own argument a tensor of another shape or storage."""
    return torch.Tag.inplace_view in func.tags or name_of(func) in ("resize_", "resize_as_", "set_")


@cache
def _written(func: Any) -> tuple[frozenset[int], frozenset[str]]:
    places, names = set(), set()
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            places.add(place)
            names.add(argument.name)
    return frozenset(places), frozenset(names)


def written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments of this call that `func` writes."""
    places, names = _written(func)
    yield from (args[place] for place in sorted(places) if place < len(args))
    yield from (value for name, value in kwargs.items() if name in names)
