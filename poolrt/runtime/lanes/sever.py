"""A tensor's values without its history, in a form that may still be changed in place.

`detach()` and `view_as` make views; autograd forbids in-place changes of a view made inside a custom function, and of
a leaf. User code does change outputs in place (`loss /= 4`, `hidden += residual`), so poolrt's nodes hand out aliases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def alias(tensor: Tensor) -> Tensor:
    """Another tensor on the same memory, related to `tensor` by nothing else (no view, own version counter)."""
    return tensor.data


class Sever(torch.autograd.Function):
    """Identity from a leaf to a tensor that is none."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        """An alias of the leaf."""
        return alias(leaf)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient."""
        return gradient


def sever(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(a leaf that collects the gradient, the tensor to go on with)."""
    leaf = tensor.detach().requires_grad_()
    return leaf, Sever.apply(leaf)
