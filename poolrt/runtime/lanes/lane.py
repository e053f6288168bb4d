"""A lane: one micro-batch's walk over the cards. It belongs to one thread at a time and holds at most one card.

    forward    [card 0: embed block0 block1] -> hop -> [card 1: block2 block3 head, loss]
    backward   [card 0: ... ] <- hop <- [card 1: ...]

A hop is the node of the autograd graph at each change of card: what needs a gradient is copied through it. In backward
it gives up one card and takes the one before, so both directions pass the same gates.

Where links take time, copies go on while the lane waits for its turn:

    card 0   [lane 1: work] [lane 2: work]
    link             [lane 1: copy]  [lane 2: copy]
    card 1                          [lane 1: work] [lane 2: work]
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from poolrt.runtime.batches.merge_rule import carry_story
from poolrt.runtime.lanes.crossing import Crossings, Flights
from poolrt.runtime.lanes.random_state import CardSeeds
from poolrt.runtime.lanes.sever import alias
from poolrt.runtime.lanes.turnstile import Admission, Ticket, Turnstile
from poolrt.runtime.placing.caps import Caps
from poolrt.runtime.state.trees import flatten
from poolrt.transfer.move import Arrival, moved, start
from poolrt.transfer.streams import current_stream, mark, runs_beside, side_stream


class Walker(Protocol):
    """What stands in the thread while a model's forward runs: told before and after each placed layer."""

    def before(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The layer is about to run; returns its arguments, moved as needed."""

    def after(self, layer: Any, output: Any) -> Any:
        """The layer has run; returns its output."""


class _Current(threading.local):
    walker: Walker | None = None


current = _Current()


class Lane:
    """The walk of micro-batch `index`. `devices` maps a card's index to torch's device; `caps` are logical cards'."""

    def __init__(
        self, index: int, devices: Sequence[torch.device], seeds: CardSeeds | None, caps: Caps | None = None
    ) -> None:
        self.index = index
        self.crossings = Crossings()
        self.path: list[int] = []
        self.calls = 0
        """of layers, in the forward: each has its own seed"""
        self._devices = devices
        self._seeds = seeds
        self._turnstile: Turnstile | None = None
        self._visits: Counter[int] = Counter()
        self._admission: Admission | None = None
        self._caps = caps
        self._share = ExitStack()
        self._reached: list[torch.Event] = []
        """by logical cards: what the next card's work must come after"""

    @property
    def card(self) -> int | None:
        """The card this lane holds."""
        return None if self._admission is None else self._admission.card

    @property
    def device(self) -> torch.device | None:
        """The device of the card this lane holds."""
        return None if self._admission is None else self._devices[self._admission.card]

    @property
    def is_seeded(self) -> bool:
        """Whether what is drawn in this lane follows from the forward's seed."""
        return self._seeds is not None

    def begin(self, turnstile: Turnstile, after: Sequence[torch.Event] = ()) -> None:
        """Start a phase: visits count anew, at the gates of `turnstile`; logical cards wait for `after`."""
        self._turnstile = turnstile
        self._visits.clear()
        self._admission = None
        self._reached = list(after)

    def work(self, body: Callable[[Lane], None]) -> None:
        """Do one phase's work and leave the turnstile; an out-of-memory error is marked with its card."""
        try:
            body(self)
        except BaseException as error:
            if isinstance(error, torch.OutOfMemoryError):
                error.card = self.card  # type: ignore[attr-defined]
            self._share.close()
            if self._seeds is not None and self._admission is not None:
                self._seeds.leave(self._admission.card)  # or another lane would wait for it for ever
            raise
        self.finish()

    def go(self, card: int) -> None:
        """Hold `card`, giving up the one held before; waits for its turn."""
        if self.card == card:
            return
        assert self._turnstile is not None
        self.leave()
        ticket = Ticket(self._visits[card], self.index)
        self._visits[card] += 1
        self._admission = self._turnstile.acquire(card, ticket)
        device = self._devices[card]
        if device.type != "cpu":  # kernels of other libraries launch on the thread's current device
            torch.get_device_module(device).set_device(device)
        if self._caps is not None:
            self._share.enter_context(self._caps.work(card, self._reached))
        if self._seeds is not None:
            self._seeds.seed(card, ticket)

    def seed_call(self) -> None:
        """A layer is about to run on the card held: what it draws depends on nothing that ran before it."""
        if self._seeds is not None and self.card is not None:
            self._seeds.seed_call(self.card, self.calls, self.index)
        self.calls += 1

    def leave(self) -> None:
        """Give up the card held, if any."""
        if self._admission is not None and self._turnstile is not None:
            admission, self._admission = self._admission, None
            self._share.close()
            if self._caps is not None:
                self._reached = [self._caps.mark(admission.card)]
            if self._seeds is not None:
                self._seeds.leave(admission.card)
            self._turnstile.release(admission)

    def leave_for_good(self) -> None:
        """Give up the card held; what this thread does from now on comes after this lane's work on it."""
        last = self.device
        self.leave()
        if last is not None:
            for event in self._reached:
                event.wait(current_stream(last))
            self._reached = []

    def finish(self) -> None:
        """The phase is over for this lane."""
        self.leave()
        if self._turnstile is not None:
            self._turnstile.finish(self.index)

    def enter(self, card: int, value: Any) -> Any:
        """Go to `card` and return `value` with its tensors there; what needs a gradient crosses through a hop."""
        if self.card == card:
            return self.crossings.move_all(value, self._devices[card])
        came_from, device = self.card, self._devices[card]
        given = self._given(device)
        self.leave()
        tree = flatten(value)  # while the card may still be another lane's
        tensors = [self.crossings.current(tensor) for tensor in tree.tensors]
        if not given:
            return tree.rebuild(self._land(card, tensors, came_from, {}))
        flights: Flights = {}
        with _abandoned_on_error(flights.values()):
            self.crossings.send(tensors, device, given, flights)
            return tree.rebuild(self._land(card, tensors, came_from, flights))

    def _land(self, card: int, tensors: list[Tensor], came_from: int | None, flights: Flights) -> list[Tensor]:
        """Hold `card`; the tensors there."""
        self.go(card)
        self.lend(tensors)
        self.path.append(card)
        device = self._devices[card]
        hopped = {} if came_from is None else self._hopped(tensors, came_from, device, flights)
        return [self._arrived(tensor, device, hopped.get(i), flights) for i, tensor in enumerate(tensors)]

    def go_back(
        self, card: int, gradients: Sequence[Tensor | None], devices: Sequence[torch.device]
    ) -> list[Tensor | None]:
        """Hold `card`; the gradients, each on its one of `devices`."""
        given = self._given(self._devices[card])
        if not given:
            moved_back = [
                g if g is None else self._back(g, device) for g, device in zip(gradients, devices, strict=True)
            ]
            self.go(card)
            self.lend(gradients)
            return moved_back
        canonical = current_stream(next(iter(given)))
        self.leave()  # the card is free while the gradients are on their way
        flights: list[Arrival | None] = []
        with _abandoned_on_error(flights):
            for gradient, device in zip(gradients, devices, strict=True):
                flights.append(None if gradient is None else start(gradient, device, given.get(gradient.device)))
            self.go(card)
            arrived = [None if flight is None else self._counted(flight.wait(), flight.crossed) for flight in flights]
        for device in {gradient.device for gradient in arrived if gradient is not None}:
            mark(device).wait(canonical)  # where the engine looks for what a node returns
        return arrived

    def lend(self, tensors: Sequence[Tensor | None]) -> None:
        """The card held reads these tensors; a logical card does so in a stream that is not theirs."""
        if self._caps is not None and self.card is not None:
            self._caps.lend([tensor for tensor in tensors if tensor is not None], self.card)

    def _back(self, gradient: Tensor, device: torch.device) -> Tensor:
        there = gradient.device == device
        return gradient if there else self._counted(moved(gradient, device), True)

    def _counted(self, gradient: Tensor, crossed: bool) -> Tensor:
        if crossed:
            self.crossings.count(gradient)
        return gradient

    def _given(self, device: torch.device) -> dict[torch.device, torch.Event]:
        """When what was made on the card held is there; nothing if copies to `device` are made at once."""
        held = self.device
        return {held: mark(held)} if held is not None and runs_beside(held, device) else {}

    def _arrived(self, tensor: Tensor, device: torch.device, hopped: Tensor | None, flights: Flights) -> Tensor:
        # Cards that share one device copy nothing: there the hop's own output goes on, to keep its place in the graph.
        if hopped is not None and tensor.device == device:
            return carry_story(tensor, hopped)
        if hopped is None and id(tensor) in flights:
            hopped = self.crossings.fetch(tensor, device, flights)
        return self.crossings.move(tensor, device, hopped)

    def _hopped(
        self, tensors: list[Tensor], came_from: int, device: torch.device, flights: Flights
    ) -> dict[int, Tensor]:
        """By index: the tensors that need a gradient, passed through one hop; what crossed before is left out."""
        if not torch.is_grad_enabled():
            return {}
        one_device = self._devices[came_from] == device  # logical cards of one GPU
        fresh = [
            i
            for i, t in enumerate(tensors)
            if t.requires_grad and (one_device or (t.device != device and self.crossings.find(t, device) is None))
        ]
        if not fresh:
            return {}
        sources = [self.crossings.latest(tensors[i]) for i in fresh]
        copies = [self.crossings.fetch(tensors[i], device, flights) for i in fresh]
        with self._stream_of_hop(came_from, device):
            passed = Hop.apply(self, came_from, copies, *sources)
        return dict(zip(fresh, passed, strict=True))

    def _stream_of_hop(self, came_from: int, device: torch.device) -> AbstractContextManager[Any]:
        """The stream that autograd takes for the node's own.

        Whoever reads what a node returns waits for all of that stream, in backward too. It must hold nothing else: in
        the card's stream there is other lanes' work by then. (pytorch: autograd/input_buffer.cpp, "Stream sync contract
        when dealing with multi-deviced-ness")
        """
        if not runs_beside(self._devices[came_from], device):
            return nullcontext()
        return side_stream(device, f"hop, micro-batch {self.index}")


class _abandoned_on_error:  # noqa: N801 (a block of code; a generator would take longer than a hand-over)
    """What is on its way when another lane fails, or a copy does, is not left to fail behind everybody's back."""

    def __init__(self, flights: Iterable[Arrival | None]) -> None:
        self._flights = flights

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            for flight in self._flights:
                if flight is not None:
                    flight.abandon()


class Hop(torch.autograd.Function):
    """From a tensor to its copy on another card; backward takes the lane to the card it came from, and the gradient."""

    @staticmethod
    def forward(ctx: Any, lane: Lane, came_from: int, copies: Sequence[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        """The copies; aliases where they are the tensors themselves."""
        ctx.lane, ctx.came_from = lane, came_from
        ctx.devices = [tensor.device for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(alias(copy) for copy in copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """The gradients where the tensors were, with the lane on the card it came from."""
        return (None, None, None, *ctx.lane.go_back(ctx.came_from, gradients, ctx.devices))
