"""Types of numbers by torch's names, without torch: their sizes and what a sum of two is computed in.

Kernels are planned by names so that a plan is a plain value; csrc/kernels_numbers.cuh calls its types the same.
"""

from __future__ import annotations

from typing import Literal

from poolrt.errors import ConfigurationError

Category = Literal["bool", "integer", "float", "complex"]

ITEM_NBYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""the types that kernels convert and add; a copy within one type takes any type, by its size alone"""

NAMES = tuple(ITEM_NBYTES)
WORDS = {1: "word8", 2: "word16", 4: "word32", 8: "word64", 16: "word128"}
"""what a copy within one type moves, by its bytes"""

_CATEGORIES: tuple[Category, ...] = ("bool", "integer", "float", "complex")


def category(name: str) -> Category:
    """The kind of number that `name` is.

    Raises:
        ConfigurationError: if no kernel knows the type.
    """
    if name not in ITEM_NBYTES:
        raise ConfigurationError(f"kernels do not convert {name}; they know {', '.join(NAMES)}")
    if name == "bool":
        return "bool"
    if name.startswith("complex"):
        return "complex"
    return "float" if "float" in name else "integer"


def common_type(target: str, source: str) -> str:
    """The type in which `target += source` is computed, as torch promotes two tensors of at least one dimension.

    (PyTorch documentation, "Tensor Attributes", torch.dtype: type promotion.)

    Raises:
        ConfigurationError: if the sum cannot be put back into `target` (an integer += a float), as in torch.
    """
    kinds = category(target), category(source)
    if _CATEGORIES.index(kinds[1]) > _CATEGORIES.index(kinds[0]):
        raise ConfigurationError(
            f"a {target} tensor cannot take a sum with {source}: the result is no {target}; convert the source first"
        )
    if kinds[0] != kinds[1]:
        return _of_two_kinds(target, source)
    return _wider(target, source)


def _wider(one: str, other: str) -> str:
    """Of two types of a kind: the one that holds both, which may be a third."""
    if one == other:
        return one
    if {one, other} == {"float16", "bfloat16"}:
        return "float32"
    if {one, other} == {"uint8", "int8"}:
        return "int16"
    return max(one, other, key=ITEM_NBYTES.__getitem__)


def _of_two_kinds(target: str, source: str) -> str:
    """The target is of the higher kind, so it is its own type; only a complex64 takes a float64 as complex128."""
    return "complex128" if (target, source) == ("complex64", "float64") else target
