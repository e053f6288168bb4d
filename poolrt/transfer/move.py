"""A tensor to another device: at once, or started now and waited for where it is read.

arrival = start(tensor, device)      the copy goes on in side streams; the card is free for others
...                                  wait for one's turn on the other card
tensor = arrival.wait()              the reader's stream goes on when the copy has arrived
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import TransferError
from poolrt.topology.route import RouteKind
from poolrt.transfer.bounce import ring_between
from poolrt.transfer.copy import carry, copy_over
from poolrt.transfer.extents import pieces
from poolrt.transfer.form import are_same_bytes
from poolrt.transfer.routes import current
from poolrt.transfer.streams import current_stream, mark, record, runs_beside, settle, side_stream, working_in


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


class Flight(NamedTuple):
    """What is known of a copy on its way."""

    source: Tensor
    kind: RouteKind
    arrived: torch.Event
    streams: Sequence[torch.Stream]
    """in which it is made"""


class Arrival:
    """A copy that may still be on its way. Wait for it, or abandon it."""

    __slots__ = ("_flight", "_version", "crossed", "tensor")

    def __init__(self, tensor: Tensor, flight: Flight | None = None, *, crossed: bool = True) -> None:
        self.tensor = tensor
        """the copy; its values are there once `wait` has returned, for the stream that was current then"""
        self.crossed = crossed
        """whether it is a copy at all: not so of a tensor that was there already"""
        self._flight = flight  # holds the source until the copy is known to be right
        self._version = None if flight is None or flight.source.is_inference() else flight.source._version

    @property
    def arrived(self) -> torch.Event | None:
        """The moment at which the copy is made; None once it has been waited for, or if there was nothing to copy."""
        return None if self._flight is None else self._flight.arrived

    def wait(self) -> Tensor:
        """Let this thread's stream of the target's device go on when the copy is there. Returns the copy.

        A copy over a link that failed meanwhile is made again, through the host.

        Raises:
            torch.AcceleratorError: if that fails as well.
            TransferError: if it would have to be made again, but the source has changed.
        """
        if self._flight is None:
            return self.tensor
        flight, routes = self._flight, current()
        source, stream = flight.source.device, current_stream(self.tensor.device)
        try:
            flight.arrived.wait(stream)
        except torch.AcceleratorError as error:
            if flight.kind != "P2P":
                self.abandon()
                raise
            self._repeat(flight.source)  # if this fails too, it is not the link
            routes.lose(source, self.tensor.device, error)
        else:
            if flight.kind == "P2P" and routes.is_lost(source, self.tensor.device):
                self._repeat(flight.source)
        self.tensor.record_stream(stream)
        self._flight = None
        return self.tensor

    def abandon(self) -> None:
        """Nobody will read the copy: wait until it is made or has failed, and let go of what it needs."""
        if self._flight is not None:
            settle(self._flight.streams)
            self._flight = None

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
    if tensor.device == device:
        return Arrival(tensor.detach(), crossed=False)
    if not runs_beside(tensor.device, device) or not _is_ordinary(tensor):
        return Arrival(moved(tensor.detach(), device))
    source = tensor.detach()
    given = mark(source.device) if after is None else after
    if current().between(source.device, device, source.nbytes) == "HOST":
        return _start_through_host(source, device, given)
    return _start_over_link(source, device, given)


def _start_over_link(source: Tensor, device: torch.device, given: torch.Event) -> Arrival:
    out = side_stream(source.device, f"out, to {device}")
    given.wait(out)
    into = side_stream(device, f"in, from {source.device}")
    with into:  # its memory is this stream's: no wait for the card's work
        target = torch.empty_like(source, device=device)
        with working_in(out):
            for piece in pieces(source, target):
                copy_over("P2P", piece.source, piece.target)
    source.record_stream(out)
    return Arrival(target, Flight(source, "P2P", record(out), (out, into)))


def _start_through_host(source: Tensor, device: torch.device, given: torch.Event) -> Arrival:
    ring = ring_between(source.device, device)
    with working_in(ring.up):
        target = torch.empty_like(source, device=device)
    whole = source
    if not are_same_bytes(source, target):
        with working_in(ring.down):
            given.wait(ring.down)
            whole = source.resolve_conj().resolve_neg().clone()
        assert are_same_bytes(whole, target), "a clone lies as empty_like makes it"
    source.record_stream(ring.down)
    return Arrival(target, Flight(source, "HOST", ring.start(whole, target, given), ring.streams))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`move` for a tensor without history."""
    if not _is_ordinary(tensor):
        return tensor.to(device)
    kind = current().between(tensor.device, device, tensor.nbytes)
    if (kind != "HOST" or "cpu" in (tensor.device.type, device.type)) and not _C.pools_in_use():
        try:
            return tensor.to(device)
        except torch.AcceleratorError:
            if kind != "P2P":
                raise
    target = torch.empty_like(tensor, device=device, requires_grad=False)
    carry(tensor.detach(), target)  # knows what to do about a link that fails
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
