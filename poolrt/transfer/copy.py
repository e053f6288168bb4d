"""Copies in order with the work around them, by whatever route: what `Tensor.copy_` does, and its bits.

copy(source, target)               by the routes of this process; over HOST again where a link fails
copy_over("HOST", source, target)  by this route
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind
from poolrt.transfer import by_kernel
from poolrt.transfer.bounce import ring_between
from poolrt.transfer.extents import Piece, pieces
from poolrt.transfer.form import are_same_bytes, check_pair, is_same_memory, literal_target
from poolrt.transfer.routes import current
from poolrt.transfer.streams import is_immediate


def copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Write the values of `source` into `target`, wherever the two lie, and return `target`.

    As `target.copy_(source)`: in order with the work of both cards' streams, the same bits, the same gradients. Beyond
    it, bytes go by the routes of the machine; between two GPUs through the host until their link has been proven, which
    `poolrt.shard` does.

    Args:
        source: strided tensor on a card or on the host, of any dtype.
        target: of the same shape; its dtype decides.
        non_blocking: do not wait where one of the two lies on the host (in pinned memory).

    Raises:
        ConfigurationError: if the shapes differ or the memory overlaps, or for a target that is a leaf and requires a
            gradient.
        torch.AcceleratorError: if a link failed and the way through the host failed as well.
    """
    check_pair(source, target)
    if torch.is_grad_enabled() and (source.requires_grad or target.requires_grad):
        _check_leaf(target)
        copied: Tensor = _Copied.apply(target, source, non_blocking)
        return copied
    carry(source, target, non_blocking)
    return target


def carry(source: Tensor, target: Tensor, non_blocking: bool = False) -> None:
    """`copy` without its checks and without gradients."""
    for piece in pieces(source, target):
        _carry_piece(piece, non_blocking)


def _carry_piece(piece: Piece, non_blocking: bool) -> None:
    routes = current()
    kind = routes.between(piece.came_from, piece.goes_to, piece.target.nbytes)
    try:
        copy_over(kind, piece.source, piece.target, non_blocking)
    except torch.AcceleratorError as error:
        if kind != "P2P":
            raise
        copy_over("HOST", piece.source, piece.target, non_blocking)  # if this fails too, it is not the link
        routes.lose(piece.came_from, piece.goes_to, error)


def copy_over(kind: RouteKind, source: Tensor, target: Tensor, non_blocking: bool = False) -> None:
    """Write `source` into `target` by the route `kind`, in order with this thread's streams of both devices.

    LOCAL and P2P are torch's own copy, or a kernel where that is better. HOST between two cards takes the bounce ring,
    and may be asked for within one device as well, so that it can be tested on one GPU; to or from the host it is the
    one copy that it takes.

    Args:
        kind: the route.
        source: strided tensor.
        target: of the same shape, apart from the source.
        non_blocking: do not wait where one of the two lies on the host.

    Raises:
        torch.AcceleratorError: if the link fails. Asynchronous work may tell that only where it is waited for.
    """
    if target.numel() == 0 or is_same_memory(source, target):
        return
    source, target = literal_target(source, target)
    if kind != "HOST" or source.device.type == "cpu" or target.device.type == "cpu":
        between_cards = source.device.type != "cpu" and target.device.type != "cpu"
        if not (between_cards and by_kernel.copied(source, target)):
            target.copy_(source, non_blocking=non_blocking or between_cards)
        return
    if is_immediate(source.device, target.device):
        target.copy_(source.cpu())
        return
    if are_same_bytes(source, target):
        ring_between(source.device, target.device).copy(source, target)
        return
    sent = _for_the_way(source, target.dtype)
    landed = torch.empty(sent.shape, dtype=sent.dtype, device=target.device)
    copy_over("HOST", sent, landed)
    target.copy_(landed)


def _for_the_way(source: Tensor, dtype: torch.dtype) -> Tensor:
    """The source in one piece, and in the target's dtype already if that has fewer bytes."""
    if dtype.itemsize < source.dtype.itemsize:
        source = source.to(dtype)
    return source.resolve_conj().resolve_neg().contiguous()


def _check_leaf(target: Tensor) -> None:
    if target.requires_grad and target.is_leaf:
        raise ConfigurationError(
            f"the target is a leaf that requires a gradient (shape {tuple(target.shape)}, {target.dtype}); "
            "copy within torch.no_grad(), or into target.clone()"
        )


class _Copied(torch.autograd.Function):
    """The target's gradient goes to the source; what the target was before gets none.

    The target comes first: where it is a view, autograd takes the first gradient for that of its base.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        """Copies in place."""
        ctx.mark_dirty(target)
        ctx.set_materialize_grads(False)
        ctx.source = (source.device, source.dtype)
        carry(source.detach(), target.detach(), non_blocking)
        return target

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """The gradient, on the source's device and in its dtype."""
        (gradient,) = gradients
        if gradient is None:
            return None, None, None
        none = torch.zeros_like(gradient) if ctx.needs_input_grad[0] else None
        return none, _back(gradient, *ctx.source) if ctx.needs_input_grad[1] else None, None


def _back(gradient: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    real = gradient.real if gradient.is_complex() and not dtype.is_complex else gradient
    return copy(real, torch.empty(real.shape, dtype=dtype, device=device))
