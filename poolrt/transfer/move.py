"""A tensor to another device: at once, or started now and waited for where it is read.

arrival = start(tensor, device)      the copy goes on in side streams; the card is free for others
...                                  wait for one's turn on the other card
tensor = arrival.wait()              the reader's stream goes on when the copy has arrived
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import TransferError
from poolrt.topology.route import RouteKind
from poolrt.transfer.bounce import ring_between
from poolrt.transfer.copy import carry, copy_over
from poolrt.transfer.extents import pieces
from poolrt.transfer.form import as_bytes
from poolrt.transfer.routes import current
from poolrt.transfer.streams import current_stream, mark, runs_beside, side_stream


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`: itself if it is there, else a copy. As `tensor.to(device)`, by the routes of the machine.

    Gradients go back the same way.

    Raises:
        torch.AcceleratorError: if a link failed and the way through the host failed as well.
    """
    if tensor.device == device:
        return tensor
    if torch.is_grad_enabled() and tensor.requires_grad and _is_ordinary(tensor):
        copy: Tensor = _Moved.apply(tensor, device)
        return copy
    return moved(tensor, device)


class Arrival:
    """A copy that may still be on its way."""

    __slots__ = ("_arrived", "_kind", "_source", "_version", "crossed", "tensor")

    def __init__(
        self,
        tensor: Tensor,
        source: Tensor | None = None,
        arrived: torch.Event | None = None,
        kind: RouteKind = "P2P",
        *,
        crossed: bool = True,
    ) -> None:
        self.tensor = tensor
        """the copy; its values are there once `wait` has returned, for the stream that was current then"""
        self.crossed = crossed
        """whether it is a copy at all: not so of a tensor that was there already"""
        self._source = source  # kept until the copy is known to be right
        self._version = None if source is None or source.is_inference() else source._version
        self._arrived = arrived
        self._kind = kind

    def wait(self) -> Tensor:
        """Let this thread's stream of the target's device go on when the copy is there. Returns the copy.

        A copy over a link that failed meanwhile is made again, through the host.

        Raises:
            torch.AcceleratorError: if that fails as well.
            TransferError: if it would have to be made again, but the source has changed.
        """
        if self._arrived is None or self._source is None:
            return self.tensor
        source, routes = self._source.device, current()
        stream = current_stream(self.tensor.device)
        try:
            stream.wait_event(self._arrived)
        except torch.AcceleratorError as error:
            if self._kind != "P2P":
                raise
            routes.lose(source, self.tensor.device, error)
        if self._kind == "P2P" and routes.is_lost(source, self.tensor.device):
            self._repeat(self._source)
        self.tensor.record_stream(stream)
        self._source = self._arrived = None
        return self.tensor

    def _repeat(self, source: Tensor) -> None:
        if self._version is not None and source._version != self._version:
            raise TransferError(
                f"the link from {source.device} to {self.tensor.device} failed under a copy of {source.nbytes} bytes, "
                f"and the tensor of shape {tuple(source.shape)} has been changed in place since the copy began: repeat "
                "the step; copies go through the host from now on"
            )
        copy_over("HOST", source, self.tensor)


def start(tensor: Tensor, device: torch.device, after: torch.Event | None = None) -> Arrival:
    """Begin to copy `tensor` to `device`; the copy has no history. Until it has arrived nobody may change `tensor`.

    Args:
        tensor: what to copy.
        device: where to.
        after: when its values are there; by default, when this thread's stream of its device has come this far.
    """
    source = tensor.detach()
    if source.device == device:
        return Arrival(source, crossed=False)
    if not (_is_ordinary(tensor) and runs_beside(source.device, device)):
        return Arrival(moved(source, device))
    given = mark(source.device) if after is None else after
    kind = current().between(source.device, device, source.nbytes)
    target, arrived = (_start_through_host if kind == "HOST" else _start_over_link)(source, device, given)
    return Arrival(target, source, arrived, kind)


def _start_over_link(source: Tensor, device: torch.device, given: torch.Event) -> tuple[Tensor, torch.Event]:
    out = side_stream(source.device, f"out, to {device}")
    out.wait_event(given)
    with side_stream(device, f"in, from {source.device}"):  # its memory is this stream's: no wait for the card's work
        target = torch.empty_like(source, device=device)
        with out:
            for piece in pieces(source, target):
                piece.target.copy_(piece.source, non_blocking=True)
    source.record_stream(out)
    return target, out.record_event()


def _start_through_host(source: Tensor, device: torch.device, given: torch.Event) -> tuple[Tensor, torch.Event]:
    ring = ring_between(source.device, device)
    with ring.up:
        target = torch.empty_like(source, device=device)
    flat = as_bytes(source, target)
    if flat is None:
        with ring.down:
            ring.down.wait_event(given)
            whole = source.resolve_conj().resolve_neg().clone()
        flat = as_bytes(whole, target)
        assert flat is not None, "a clone lies as empty_like makes it"
    source.record_stream(ring.down)
    return target, ring.start(*flat, given)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`move` for a tensor without history."""
    if not _is_ordinary(tensor):
        return tensor.to(device)
    kind = current().between(tensor.device, device, tensor.nbytes)
    if not _C.pools_in_use() and (kind != "HOST" or "cpu" in (tensor.device.type, device.type)):
        try:
            return tensor.to(device)
        except torch.AcceleratorError as error:
            if kind != "P2P":
                raise
            current().lose(tensor.device, device, error)
    target = torch.empty_like(tensor, device=device, requires_grad=False)
    carry(tensor.detach(), target)
    return target


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether it is a plain strided tensor; other kinds move as torch moves them."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class _Moved(torch.autograd.Function):
    """The gradient moves back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        """The copy."""
        ctx.source = tensor.device
        ctx.set_materialize_grads(False)
        return moved(tensor.detach(), device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """The gradient on the source's device."""
        (gradient,) = gradients
        return None if gradient is None else move(gradient, ctx.source), None
