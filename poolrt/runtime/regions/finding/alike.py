"""Whether two modules are the same but for their weights: what was found and proven for one then holds for the other.

Compared are the classes, the names and shapes of weights and buffers, everything the modules hold besides, and what
they are called with. Of whole numbers only those count that the code reads: a layer's own index seldom does.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from poolrt.runtime.regions.finding.attributes import Attribute
from poolrt.runtime.regions.finding.probe import Call
from poolrt.runtime.state.trees import flatten

_BOOKKEEPING = frozenset(nn.Module().__dict__)


def are_alike(first: nn.Module, second: nn.Module, read: Iterable[Attribute]) -> bool:
    """Whether the modules differ in nothing but values of weights and buffers, and in numbers that are not read.

    Args:
        first: a module.
        second: another one.
        read: the whole numbers that the code of `first` reads.
    """
    ours, theirs = list(first.named_modules()), list(second.named_modules())
    if [(path, type(module)) for path, module in ours] != [(path, type(module)) for path, module in theirs]:
        return False
    if _tensors(first) != _tensors(second):
        return False
    matter = {(attribute.path, attribute.name) for attribute in read}
    return all(
        _same_attributes(mine, other, {name for at, name in matter if at == path})
        for (path, mine), (_, other) in zip(ours, theirs, strict=True)
    )


def are_called_alike(first: Call, second: Call) -> bool:
    """Whether two calls have tensors of the same shapes in the same places, and the same other arguments."""
    ours, theirs = flatten(first), flatten(second)
    shapes = [[(leaf.path, leaf.tensor.shape, leaf.tensor.dtype) for leaf in tree.leaves] for tree in (ours, theirs)]
    constants = [[(path, value) for path, value in tree.constants if type(value) is not int] for tree in (ours, theirs)]
    return shapes[0] == shapes[1] and len(constants[0]) == len(constants[1]) and all(map(_same_item, *constants))


def _tensors(module: nn.Module) -> list[Any]:
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return [(name, tensor.shape, tensor.dtype) for name, tensor in named]


def _same_attributes(first: nn.Module, second: nn.Module, numbers: set[str]) -> bool:
    ours, theirs = first.__dict__, second.__dict__
    if ours.keys() != theirs.keys():
        return False
    return all(
        (name not in numbers and type(ours[name]) is int) or _same(ours[name], theirs[name])
        for name in ours
        if name not in _BOOKKEEPING
    )


def _same_item(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    return a[0] == b[0] and _same(a[1], b[1])


def _same(a: Any, b: Any) -> bool:
    """Equal, as far as can be told; what cannot be compared is not."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, (Tensor, types.MethodType)):
        return False
    try:
        return bool(a == b)
    except Exception:  # a class may refuse to be compared
        return False
