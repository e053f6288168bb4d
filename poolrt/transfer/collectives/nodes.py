r"""Autograd's nodes at both ends of copies among cards, and the copies between them.

    forward     fork       starts copies          at card    has its copy
                from card  starts a copy          join       waits for all, adds in the order of the cards
    backward    join       starts copies          from card  waits for its copy
                at card    starts a copy          fork       waits for all, adds in the order of the cards

`fork` and `join` are nodes of the lead card, `at card` and `from card` of the other one: autograd runs each in its
card's thread and stream. So a gradient leaves its card as soon as it is there, and nobody waits but who reads it.

Between two ends the engine passes on a tensor that may not have arrived: alone, since no other node has a part in it,
and unread. (pytorch: autograd/input_buffer.cpp, "Stream sync contract when dealing with multi-deviced-ness")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from poolrt.transfer.collectives.run import add_up
from poolrt.transfer.collectives.underway import Coming, Underway
from poolrt.transfer.move import Arrival, move
from poolrt.transfer.streams import current_stream, mark


def forked(underway: Underway, tensors: Sequence[Tensor], arrivals: Sequence[Arrival]) -> list[Tensor]:
    """One tensor for all cards, or one for each: on the cards, with history."""
    underway.gradients_return = True
    home = tensors[0].device
    passed = _Fork.apply(underway, arrivals, *tensors)
    return [
        copy if copy.device == home else _AtCard.apply(underway, card, home, copy) for card, copy in enumerate(passed)
    ]


def leaving(underway: Underway, card: int, part: Tensor) -> Tensor:
    """The same part, as what `joined` is to be given."""
    left: Tensor = _FromCard.apply(underway, card, part)
    return left


def joined(underway: Underway, parts: Sequence[Tensor], coming: Sequence[Coming]) -> Tensor:
    """The sum, on the lead card, with history."""
    total: Tensor = _Join.apply(underway, coming, True, *parts)
    return total


def brought(underway: Underway, parts: Sequence[Tensor], coming: Sequence[Coming]) -> list[Tensor]:
    """What comes from each card, on the lead card, with history."""
    return list(_Join.apply(underway, coming, False, *parts))


def abreast(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same tensors, one per card; under a checkpoint their gradients pass one node, which keeps a join's token."""
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    if not hooked or not torch.is_grad_enabled():
        return tuple(parts)
    passed: tuple[Tensor, ...] = _Abreast.apply(*parts)
    return passed


def given_back(underway: Underway, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients on their cards, in order with the lead card's stream: what the engine asks of any node."""
    if torch.is_grad_enabled():
        return [move(gradient, device) for gradient, device in _pairs(gradients, underway.devices)]
    arrivals = [underway.start(gradient, device) for gradient, device in _pairs(gradients, underway.devices)]
    _wait_now(arrivals, underway.lead)
    return [arrival.tensor for arrival in arrivals]


def summed(coming: Sequence[Coming]) -> Tensor:
    """Added as they arrive, in this order."""
    return add_up(coming) if len(coming) > 1 else coming[0]().clone()


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, underway: Underway, arrivals: Sequence[Arrival], *tensors: Tensor) -> tuple[Tensor, ...]:
        own = tensors if len(tensors) > 1 else tensors * len(arrivals)
        ctx.underway, ctx.is_one, ctx.homes = underway, len(tensors) == 1, [tensor.device for tensor in own]
        ctx.streams = [_stream_of(device) for device in underway.devices]
        ctx.set_materialize_grads(False)
        return tuple(
            arrival.tensor.data if arrival.crossed else tensor.view_as(tensor)
            for arrival, tensor in zip(arrivals, own, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # gradients will have gradients
            moved = [g if g is None else move(g, home) for g, home in zip(gradients, ctx.homes, strict=True)]
            present = [gradient for gradient in moved if gradient is not None]
            return None, None, *((sum(present[1:], start=present[0]),) if ctx.is_one else moved)
        coming = [
            None if gradient is None else _coming_home(ctx, card, gradient) for card, gradient in enumerate(gradients)
        ]
        result = (_added(ctx, gradients, coming),) if ctx.is_one else [c if c is None else c() for c in coming]
        ctx.underway.let_go()
        return None, None, *result


def _coming_home(ctx: Any, card: int, gradient: Tensor) -> Coming:
    """A card's gradient, where what was sent to the card is. Then the card may write to what it has sent."""
    begun, stream, home = ctx.underway.take(card, gradient), ctx.streams[card], ctx.homes[card]

    def wait() -> Tensor:
        arrival = begun or ctx.underway.start(gradient, home)
        arrived = arrival.arrived
        tensor: Tensor = arrival.wait()
        if stream is not None and arrived is not None:
            with suppress(torch.AcceleratorError):  # it was told to the reader, who has it by another way
                stream.wait_event(arrived)
        return tensor

    return wait


def _added(ctx: Any, gradients: Sequence[Tensor | None], coming: Sequence[Coming | None]) -> Tensor | None:
    """The sum of the cards' gradients, where the forked tensor is."""
    underway, home = ctx.underway, ctx.homes[0]
    present = [gradient for gradient in gradients if gradient is not None]
    if len(present) > 1 and home == underway.lead and not underway.in_one_shot(present[0]):
        moment = mark(home)  # the node's own stream: the gradients are there when it has come this far
        for gradient in present:
            stream = current_stream(gradient.device)
            stream.wait_event(moment)
            gradient.record_stream(stream)
        total: Tensor = underway.sum(present)
        return total
    waits = [wait for wait in coming if wait is not None]
    return add_up(waits) if len(waits) > 1 else waits[0]() if waits else None


class _AtCard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, underway: Underway, card: int, home: torch.device, copy: Tensor) -> Tensor:
        ctx.underway, ctx.card, ctx.home = underway, card, home
        return copy.data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        underway = ctx.underway
        if not torch.is_grad_enabled() and (ctx.home != underway.lead or underway.in_one_shot(gradient)):
            arrival = underway.early(gradient, ctx.home)
            if arrival is not None:
                underway.pass_on(ctx.card, gradient, arrival)
        return None, None, None, gradient


class _FromCard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, underway: Underway, card: int, part: Tensor) -> Tensor:
        ctx.underway, ctx.card, ctx.stream_of_lead = underway, card, _stream_of(underway.lead)
        return part.data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        underway = ctx.underway
        arrival = underway.take(ctx.card, gradient)
        if arrival is not None:
            arrived = arrival.arrived
            arrival.wait()
            if arrived is not None and ctx.stream_of_lead is not None and not underway.gradients_return:
                with suppress(torch.AcceleratorError):  # as above
                    ctx.stream_of_lead.wait_event(arrived)  # nothing else tells it when it may write
        return None, None, gradient


class _Join(torch.autograd.Function):
    """The sum, or every part. It keeps a token for backward.

    Under a checkpoint without reentry the first kept tensor that backward asks for starts the recomputation of the
    whole frame. The join is asked before any card's own nodes, and alone: without the token two cards' autograd
    threads could start it at once, and torch does not lock it.
    """

    @staticmethod
    def forward(ctx: Any, underway: Underway, coming: Sequence[Coming], adds: bool, *parts: Tensor) -> Any:
        ctx.underway, ctx.adds, ctx.homes = underway, adds, [part.device for part in parts]
        ctx.save_for_backward(parts[0].new_empty(1))
        ctx.set_materialize_grads(False)
        if adds:
            return summed(coming)
        return tuple(
            part.view_as(part) if part.device == underway.lead else wait()
            for wait, part in zip(coming, parts, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        given = gradients * len(ctx.homes) if ctx.adds else gradients
        wanted = [g if need else None for g, need in zip(given, ctx.needs_input_grad[3:], strict=True)]
        if torch.is_grad_enabled():
            return None, None, None, *(g if g is None else move(g, home) for g, home in _pairs(wanted, ctx.homes))
        return None, None, None, *_to_cards(ctx.underway, wanted, ctx.homes, ctx.adds)


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


def _pairs(gradients: Sequence[Tensor | None], homes: Sequence[torch.device]) -> Iterable[Any]:
    return zip(gradients, homes, strict=True)


def _to_cards(
    underway: Underway, gradients: Sequence[Tensor | None], homes: Sequence[torch.device], alike: bool
) -> list[Tensor | None]:
    """The gradients on the cards, where the nodes that read them wait for them."""
    if alike and gradients[0] is not None and None not in gradients and tuple(homes) == underway.devices:
        arrivals: Sequence[Arrival | None] = underway.broadcast(gradients[0])
    else:
        arrivals = [g if g is None else underway.start(g, home) for g, home in _pairs(gradients, homes)]
    for card, (gradient, arrival) in enumerate(zip(gradients, arrivals, strict=True)):
        if gradient is None or arrival is None or not arrival.crossed:
            continue
        if arrival.arrived is not None and underway.gradients_return:
            underway.hold(gradient)
        underway.pass_on(card, arrival.tensor, arrival)
    if torch.is_anomaly_enabled():
        _wait_now(arrivals, underway.lead)
    return [
        gradient if arrival is None or not arrival.crossed else arrival.tensor
        for gradient, arrival in zip(gradients, arrivals, strict=True)
    ]


def _wait_now(arrivals: Sequence[Arrival | None], lead: torch.device) -> None:
    """Whoever looks for NaN looks at what nodes return, before anybody waits for it."""
    for arrival in arrivals:
        if arrival is not None and arrival.arrived is not None:
            device = arrival.wait().device
            current_stream(lead).wait_event(mark(device))


def _stream_of(device: torch.device) -> torch.Stream | None:
    return None if device.type == "cpu" else current_stream(device)
