"""The form of tensors: which copies are plain copies of bytes, and which would write over themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.transfer.layout import Layout
from poolrt.transfer.overlap import repeats, share_memory


def as_bytes(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as flat bytes, where copying those is the same as `target.copy_(source)`; otherwise None."""
    return (_flat(source), _flat(target)) if are_same_bytes(source, target) else None


def are_same_bytes(source: Tensor, target: Tensor) -> bool:
    """Whether `target.copy_(source)` is to copy one range of memory to another, as it is."""
    if source.dtype != target.dtype or not (_is_literal(source) and _is_literal(target)):
        return False
    if source.is_contiguous() and target.is_contiguous():
        return True
    return source.stride() == target.stride() and _is_dense(source)


def literal_target(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same copy with a target whose memory holds its values: writing x into conj(y) is writing conj(x) into y."""
    if target.is_conj():
        source, target = source.conj(), target.conj()
    if target.is_neg():
        source, target = torch._neg_view(source), torch._neg_view(target)
    return source, target


def _is_literal(tensor: Tensor) -> bool:
    """Whether its memory holds its values: not so a lazily conjugated or negated one."""
    return not (tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor())


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill one range of memory, each in a place of its own."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def check_pair(source: Tensor, target: Tensor) -> None:
    """Refuse what cannot be copied element by element.

    Raises:
        ConfigurationError: for tensors of different shapes, a target whose elements share memory, or two that overlap.
    """
    if source.shape != target.shape:
        raise ConfigurationError(
            f"copy() needs two tensors of one shape, got {tuple(source.shape)} to copy and {tuple(target.shape)} to "
            "write; expand or reshape the source first"
        )
    if repeats(layout_of(target)):
        raise ConfigurationError(
            f"several elements of the target share one place in memory (shape {tuple(target.shape)}, strides "
            f"{target.stride()}); write into a tensor of its own, such as target.clone()"
        )
    if _overlap(source, target):
        raise ConfigurationError(
            f"source and target overlap in memory (both on {target.device}, shape {tuple(target.shape)}); "
            "copy from source.clone()"
        )


def is_same_memory(source: Tensor, target: Tensor) -> bool:
    """Whether they are two names of the same elements in the same order."""
    return (
        source.device == target.device
        and source.data_ptr() == target.data_ptr()
        and source.dtype == target.dtype
        and source.stride() == target.stride()
        and _is_literal(source) == _is_literal(target)
    )


def layout_of(tensor: Tensor) -> Layout:
    """Where the elements of a strided tensor lie."""
    return Layout(
        address=tensor.data_ptr(),
        item_nbytes=tensor.element_size(),
        shape=tuple(tensor.shape),
        strides=tensor.stride(),
    )


def _overlap(source: Tensor, target: Tensor) -> bool:
    if source.device != target.device or is_same_memory(source, target):
        return False
    return share_memory(layout_of(target), layout_of(source))
