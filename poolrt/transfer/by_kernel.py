"""Copies that a kernel makes better than torch does, on GPUs.

    strided or converted, from GPU to GPU    torch makes whole copies on both sides of the link; a kernel reads across
    many small ones                          one launch instead of one each

Both say whether they have copied: where no kernel serves (virtual cards, no cupy) torch does it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.transfer import kernels
from poolrt.transfer.form import are_same_bytes

LEAST_PAIRS = 32
"""from so many copies on it pays to send their addresses to the card first"""


def copied(source: Tensor, target: Tensor) -> bool:
    """Copy between two GPUs, unless it is one of plain bytes: the copy engines do those."""
    if source.device == target.device or not _serve(source.device, target.device):
        return False
    if source._is_zerotensor() or are_same_bytes(source, target):
        return False
    try:
        kernels.copy(source.resolve_conj().resolve_neg(), target)
    except ConfigurationError:  # a conversion that only torch knows; nothing has been started
        return False
    return True


def many_copied(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Copy flat bytes between the same two GPUs, or within one."""
    source, target = pairs[0]
    if len(pairs) < LEAST_PAIRS or not _serve(source.device, target.device):
        return False
    kernels.copy_many(pairs)
    return True


def _serve(source: torch.device, target: torch.device) -> bool:
    if source.type != "cuda" or target.type != "cuda":
        return False
    return kernels.available(source) is None and kernels.available(target) is None
