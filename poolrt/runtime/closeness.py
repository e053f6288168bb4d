"""When two tensors count as equal: they may differ as reordered sums do, and no further."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""largest difference of an output, relative to its largest value, that reordered sums explain"""
SCALAR_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""the same for losses"""


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ only as reordered sums do."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = (SCALAR_TOLERANCE if a.dim() == 0 else TOLERANCE).get(a.dtype, 2e-4)
    finite = b[torch.isfinite(b)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)
