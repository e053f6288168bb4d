"""torch's tensors as the plain values that kernels are planned with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy
import torch

import poolrt.transfer.form as form
from poolrt.errors import ConfigurationError
from poolrt.transfer.layout import Layout

_Holds = Callable[[torch.Tensor, torch.Tensor], bool]


def layout_of(tensor: torch.Tensor) -> Layout:
    """Where the tensor's elements lie.

    Raises:
        ConfigurationError: if the tensor is not strided, or a lazy conjugate or negative.
    """
    if tensor.layout != torch.strided:
        raise ConfigurationError(f"kernels copy strided tensors, not {tensor.layout}; use target.copy_(source)")
    if tensor.is_conj() or tensor.is_neg():
        raise ConfigurationError("the tensor is a lazy conjugate or negative; call resolve_conj() and resolve_neg()")
    return form.layout_of(tensor)


def type_name(dtype: torch.dtype) -> str:
    """bfloat16 of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def runs_of(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> numpy.ndarray[Any, Any]:
    """A row of (target address, source address, bytes) for every pair.

    One pass over all tensors per fact: for a thousand of them this is most of the time that copying them takes.

    Raises:
        ConfigurationError: names the first pair that is not contiguous, of one size and of one type.
    """
    sizes = [tensor.nbytes for tensor in targets]
    if sizes != [tensor.nbytes for tensor in sources]:
        _refuse(sources, targets, "of one size", lambda source, target: source.nbytes == target.nbytes)
    if [tensor.dtype for tensor in targets] != [tensor.dtype for tensor in sources]:
        _refuse(sources, targets, "of one type", lambda source, target: source.dtype == target.dtype)
    if not all(map(torch.Tensor.is_contiguous, (*sources, *targets))):
        _refuse(sources, targets, "contiguous", lambda *pair: all(tensor.is_contiguous() for tensor in pair))
    addresses = [list(map(torch.Tensor.data_ptr, tensors)) for tensors in (targets, sources)]
    return numpy.array([*addresses, sizes], dtype=numpy.int64).T


def _refuse(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], wanted: str, holds: _Holds) -> NoReturn:
    """Names the first pair that is not as wanted."""
    pairs = enumerate(zip(sources, targets, strict=True))
    number, source, target = next((number, *pair) for number, pair in pairs if not holds(*pair))
    raise ConfigurationError(
        f"pair {number} is not {wanted}: {source.dtype} {tuple(source.shape)} with strides {source.stride()} to "
        f"{target.dtype} {tuple(target.shape)} with strides {target.stride()}; copy() takes it"
    )
