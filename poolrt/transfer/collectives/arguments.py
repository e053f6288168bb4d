"""What a collective can be asked for: checked once, before anything moves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.transfer.collectives.plan import cut

Span = tuple[int, int]
"""(begin, end) along a dimension"""


def checked_devices(devices: Sequence[torch.device | str]) -> list[torch.device]:
    """The devices with their numbers, as tensors on them have them.

    Raises:
        ConfigurationError: for none.
    """
    if not devices:
        raise ConfigurationError("a collective needs at least one device, got none")
    named = [torch.device(device) for device in devices]
    return [
        device if device.index is not None or device.type == "cpu" else torch.empty(0, device=device).device
        for device in named
    ]


def check_strided(tensors: Sequence[Tensor]) -> None:
    """Refuse no tensors, and those that have no plain elements.

    Raises:
        ConfigurationError: names the first of that kind.
    """
    if not tensors:
        raise ConfigurationError("a collective needs at least one tensor, got none")
    for card, tensor in enumerate(tensors):
        if tensor.layout != torch.strided:
            raise ConfigurationError(f"tensor {card} is {tensor.layout}; collectives take strided ones: to_dense() it")


def check_alike(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors that cannot be added element by element without a conversion.

    Raises:
        ConfigurationError: names the first that differs from tensor 0.
    """
    check_strided(tensors)
    first = tensors[0]
    for card, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise ConfigurationError(
                f"tensor {card} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, but tensor 0 is "
                f"{first.dtype} {tuple(first.shape)} on {first.device}; a sum takes one shape and type"
            )


def check_joinable(tensors: Sequence[Tensor], dim: int) -> int:
    """The dimension, counted from the front, along which all tensors can be joined.

    Raises:
        ConfigurationError: names the first tensor that does not fit tensor 0.
    """
    check_strided(tensors)
    first, dim = tensors[0], dimension(dim, tensors[0])
    for card, tensor in enumerate(tensors):
        shapes = [list(one.shape) for one in (tensor, first)]
        others = [shape[:dim] + shape[dim + 1 :] for shape in shapes]
        if tensor.dtype != first.dtype or others[0] != others[1] or tensor.dim() != first.dim():
            raise ConfigurationError(
                f"tensor {card} is {tensor.dtype} {tuple(tensor.shape)}, tensor 0 {first.dtype} {tuple(first.shape)}: "
                f"they cannot be joined along dimension {dim}, which alone may differ"
            )
    return dim


def dimension(dim: int, tensor: Tensor) -> int:
    """`dim` counted from the front.

    Raises:
        ConfigurationError: if the tensor has no such dimension.
    """
    if not -tensor.dim() <= dim < tensor.dim():
        raise ConfigurationError(f"a tensor of shape {tuple(tensor.shape)} has no dimension {dim}")
    return dim % tensor.dim()


def spans_of(tensor: Tensor, dim: int, parts: int, sizes: Sequence[int] | None) -> list[Span]:
    """The parts of a tensor along a dimension: of these sizes, or as equal as can be.

    Raises:
        ConfigurationError: if the sizes are not one per part, or do not sum to the tensor's.
    """
    length = tensor.shape[dim]
    if sizes is None:
        return cut(length, parts)
    if len(sizes) != parts or sum(sizes) != length or min(sizes) < 0:
        raise ConfigurationError(
            f"{list(sizes)} are no sizes of {parts} parts of dimension {dim}, which has {length} elements"
        )
    ends = list(accumulate(sizes))
    return list(zip([0, *ends[:-1]], ends, strict=True))
