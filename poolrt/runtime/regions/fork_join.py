"""One tensor to every card, and one tensor from what every card made of it.

           .--> card 0 --.                 backward: the same picture from right to left,
    x -- fork            join -- sum                 join copies the gradient to the cards,
           '--> card 1 --'                           fork adds the cards' gradients

Both add in the order of the cards, so that results have the same bits whichever card was first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def fork(tensor: Tensor, devices: Sequence[torch.device]) -> tuple[Tensor, ...]:
    """A copy of `tensor` on each device; gradients come back added up, on the tensor's own device."""
    if tensor.requires_grad and torch.is_grad_enabled():
        copies: tuple[Tensor, ...] = _Fork.apply(tensor, tuple(devices))
        return copies
    return tuple(tensor.to(device) for device in devices)


def join(parts: Sequence[Tensor], lead: torch.device) -> Tensor:
    """The sum of one tensor per card, on `lead`."""
    total: Tensor = _Join.apply(lead, *parts)
    return total


def abreast(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same tensors, one per card; under a checkpoint their gradients pass one node, which keeps `_Join`'s token."""
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    if not hooked or not torch.is_grad_enabled():
        return tuple(parts)
    passed: tuple[Tensor, ...] = _Abreast.apply(*parts)
    return passed


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, devices: tuple[torch.device, ...]) -> tuple[Tensor, ...]:
        ctx.home = tensor.device
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) if device == tensor.device else tensor.to(device) for device in devices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        return _add_in_order(gradients, ctx.home), None


class _Join(torch.autograd.Function):
    """The sum. It keeps a token for backward.

    Under a checkpoint without reentry the first kept tensor that backward asks for starts the recomputation of the
    whole frame. The join is asked before any card's own nodes, and alone: without the token two cards' autograd
    threads could start it at once, and torch does not lock it.
    """

    @staticmethod
    def forward(ctx: Any, lead: torch.device, *parts: Tensor) -> Tensor:
        ctx.homes = [part.device for part in parts]
        ctx.save_for_backward(parts[0].new_empty(1))
        total = _add_in_order(parts, lead)
        return total.clone() if total is parts[0] else total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return None, *(gradient.to(home) for home in ctx.homes)


class _Abreast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(parts[0].new_empty(1))
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return gradients


def _add_in_order(parts: Sequence[Tensor | None], home: torch.device) -> Any:
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part.to(home) if total is None else total + part.to(home)
    return total
