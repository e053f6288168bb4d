"""Conversions and sums of torch's numbers as device functions for Numba; csrc/kernels_numbers.cuh is the same in C++.

A bfloat16 is its 16 bits, as Numba has no such type, and the widest word a complex number, whose bits nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy
from numba import cuda

_DTYPES = {
    "bool": numpy.bool_,
    "bfloat16": numpy.uint16,
    "word8": numpy.uint8,
    "word16": numpy.uint16,
    "word32": numpy.uint32,
    "word64": numpy.uint64,
    "word128": numpy.complex128,
}


def storage_dtype(name: str) -> numpy.dtype[Any]:
    """The NumPy type whose array holds elements of the type `name`."""
    return numpy.dtype(_DTYPES.get(name, name))


@cuda.jit(device=True)
def widen_bfloat16(bits: Any) -> Any:
    """The number of which these are the upper 16 bits as a float32."""
    return numpy.uint32(numpy.uint32(bits) << numpy.uint32(16)).view(numpy.float32)


@cuda.jit(device=True)
def narrow_bfloat16(number: Any) -> Any:
    """Rounded to nearest, ties to even."""
    bits = numpy.float32(number).view(numpy.uint32)
    if (bits & numpy.uint32(0x7FFFFFFF)) > numpy.uint32(0x7F800000):
        return numpy.uint16(0x7FC0)
    rounding = numpy.uint64(0x7FFF) + ((numpy.uint64(bits) >> numpy.uint64(16)) & numpy.uint64(1))
    return numpy.uint16((numpy.uint64(bits) + rounding) >> numpy.uint64(16))


def converter(source_type: str, target_type: str) -> Callable[[Any], Any]:
    """The device function that turns one number into another, as Tensor.copy_ does."""
    if source_type == target_type:
        return _same
    if source_type == "bfloat16":
        return _chain(widen_bfloat16, converter("float32", target_type))
    if target_type == "bfloat16":
        return _chain(converter(source_type, "float32"), narrow_bfloat16)
    if source_type.startswith("complex") and not target_type.startswith("complex"):
        part = "float32" if source_type == "complex64" else "float64"
        return _nonzero if target_type == "bool" else _chain(_real, converter(part, target_type))
    if target_type == "bool":
        return _nonzero
    if source_type == "float16":
        return _chain(_caster("float32"), converter("float32", target_type))
    if target_type == "float16":
        return _chain(_caster("float32"), _caster("float16"))
    if target_type == "uint8" and source_type.startswith("float"):
        return _chain(_caster("int64"), _caster("uint8"))
    return _caster(target_type)


def adder(name: str) -> Callable[[Any, Any], Any]:
    """The device function that adds two numbers of one type, as Tensor.add_ does."""
    if name == "bool":
        return _either
    if name not in ("float16", "bfloat16"):
        cast = _caster(name)

        @cuda.jit(device=True)
        def add(a: Any, b: Any) -> Any:
            return cast(a + b)

        return add
    widen, narrow = converter(name, "float32"), converter("float32", name)

    @cuda.jit(device=True)
    def add_halves(a: Any, b: Any) -> Any:
        return narrow(widen(a) + widen(b))

    return add_halves


@cuda.jit(device=True)
def _same(value: Any) -> Any:
    return value


@cuda.jit(device=True)
def _real(value: Any) -> Any:
    return value.real


@cuda.jit(device=True)
def _nonzero(value: Any) -> Any:
    return value != 0


@cuda.jit(device=True)
def _either(a: Any, b: Any) -> Any:
    return a or b


@cache
def _caster(name: str) -> Callable[[Any], Any]:
    number = storage_dtype(name).type

    @cuda.jit(device=True)
    def cast(value: Any) -> Any:
        return number(value)

    return cast


def _chain(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @cuda.jit(device=True)
    def both(value: Any) -> Any:
        return second(first(value))

    return both
