"""When two tensors count as equal: they may differ as reordered sums do, and no further."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""largest difference of an output, relative to its largest value, that reordered sums explain"""
SCALAR_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""the same for losses"""
PIECE_NBYTES = 1 << 20
"""how much of a tensor is compared at once"""


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ only as reordered sums do."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = (SCALAR_TOLERANCE if a.dim() == 0 else TOLERANCE).get(a.dtype, 2e-4)
    pieces = list(zip(_pieces(a), _pieces(b), strict=True))
    scale = max((_largest_finite(piece) for _, piece in pieces), default=0.0)
    return all(
        torch.allclose(mine, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=True) for mine, theirs in pieces
    )


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Rows of a tensor, few at a time: a comparison makes several temporaries, and the card may be nearly full."""
    if tensor.dim() == 0 or tensor.nbytes <= PIECE_NBYTES:
        return (tensor,) if tensor.numel() else ()
    return tensor.split(max(1, PIECE_NBYTES * len(tensor) // tensor.nbytes))


def _largest_finite(tensor: Tensor) -> float:
    return float(torch.where(torch.isfinite(tensor), tensor.abs(), 0).max())
