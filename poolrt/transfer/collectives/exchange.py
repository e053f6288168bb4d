r"""What the cards of one piece of work are given and give back, on its way while they work.

    lead    x --- fork ---.----- work ------.------------- join --> sum          time goes right
                 [copy to 1 ..]             .  [copy to 0 ..]
    card 1                     `-- work ----'                                    the other cards likewise

A fork starts copies in side streams and waits for nothing; a card waits for its own copies alone, when its work begins
(`land`). What a card has made is sent as soon as it is there (`leave`), and added in the order of the cards: sums have
the same bits whichever card was first. Backward is the same picture from right to left (nodes.py).

More than two cards get large tensors in two shots or round a ring (choice.py): fewer bytes leave one card, for the
price that every card passes on what it was given before it begins. Then, too, the lead card works meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import torch
from torch import Tensor

from poolrt.transfer.collectives.forward import Way
from poolrt.transfer.collectives.known import Copies, KnownCopies, version_of
from poolrt.transfer.collectives.nodes import brought, forked, given_back, joined, leaving, summed
from poolrt.transfer.collectives.run import Note
from poolrt.transfer.collectives.underway import Coming, Underway
from poolrt.transfer.move import Arrival
from poolrt.transfer.streams import current_stream


class Exchange:
    """One piece of work of several cards: what goes out to them and what comes back. A block, in one thread.

        with Exchange(devices) as exchange:
            copies = exchange.fork(x)
            for card in range(len(devices)):
                exchange.land(card)
                parts.append(exchange.leave(card, work(copies[card])))
            total = exchange.join(parts)

    Args:
        devices: of the cards; the first is the lead card's.
        note: told of every copy from card to card, in backward too.
        known: copies made before, which are not made again.
        way: how large tensors go among more than two cards; by default as published figures say.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        note: Note | None = None,
        known: KnownCopies | None = None,
        *,
        way: Way = None,
    ) -> None:
        self._underway = Underway(devices, note, way)
        self._known = known
        self._landing: list[list[Copies]] = [[] for _ in devices]
        self._leaving: dict[int, tuple[Tensor, Arrival | None]] = {}  # by id of the part that is to be joined
        self._read: list[tuple[int, torch.Event]] = []
        self._returned: set[int] = set()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._let_lead_write()
        else:
            coming = [copies.arrivals[card] for card, all_ in enumerate(self._landing) for copies in all_]
            for arrival in (*coming, *(arrival for _, arrival in self._leaving.values())):
                if arrival is not None:
                    arrival.abandon()
        self._landing.clear()
        self._leaving.clear()

    def _let_lead_write(self) -> None:
        """What was sent may be changed afterwards. A card that gave something back had read what it was given."""
        for card, arrived in self._read:
            if card not in self._returned:
                with suppress(torch.AcceleratorError):  # it was told to the reader, who has it by another way
                    current_stream(self._underway.lead).wait_event(arrived)

    # ---- out

    def fork(self, tensor: Tensor) -> Sequence[Tensor]:
        """A copy for each card; where it lies already, the tensor. A card reads its own after `land`.

        Gradients come back added up in the order of the cards, to where the tensor is.
        """
        copies = None if self._known is None else self._known.find(tensor)
        if copies is None:
            copies = self._sent([tensor], self._underway.broadcast(tensor))
            if self._known is not None:
                self._known.remember(copies)
        return self._to_land(copies)

    def deal(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Part k for card k, which reads it after `land`. Gradients come back to where each part is."""
        devices = self._underway.devices
        arrivals = [self._underway.start(part, device) for part, device in zip(parts, devices, strict=True)]
        return self._to_land(self._sent(parts, arrivals))

    def land(self, card: int) -> None:
        """Let the stream in which `card` works go on when all that was sent to it is there.

        Raises:
            TransferError: if something of it has been changed in place meanwhile.
        """
        for copies in self._landing[card]:
            copies.check_unchanged()
            copies.arrivals[card].wait()
        self._landing[card].clear()

    def land_all(self) -> None:
        """`land` on every card."""
        for card in range(len(self._landing)):
            self.land(card)

    def _sent(self, tensors: Sequence[Tensor], arrivals: Sequence[Arrival]) -> Copies:
        if _has_history(tensors):
            copies = forked(self._underway, tensors, arrivals)
        else:
            own = tensors if len(tensors) > 1 else [tensors[0]] * len(arrivals)
            copies = [a.tensor if a.crossed else tensor for a, tensor in zip(arrivals, own, strict=True)]
        return Copies(tensors, [version_of(tensor) for tensor in tensors], copies, arrivals)

    def _to_land(self, copies: Copies) -> Sequence[Tensor]:
        for card, arrival in enumerate(copies.arrivals):
            self._landing[card].append(copies)
            if arrival.arrived is not None:
                self._read.append((card, arrival.arrived))
        return copies.copies

    # ---- back

    def leave(self, card: int, part: Tensor) -> Tensor:
        """Start to send what `card` has made to the lead card. What is returned is to be joined or gathered."""
        if part.device == self._underway.lead:
            return part
        arrival = self._underway.early(part, self._underway.lead)
        left = leaving(self._underway, card, part) if _has_history([part]) else part
        self._leaving[id(left)] = left, arrival
        self._returned.add(card)
        return left

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of one tensor per card, on the lead card; halves are added in fp32 where there are three or more."""
        parts, coming = self._coming(parts)
        return joined(self._underway, parts, coming) if _has_history(parts) else summed(coming)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """One tensor per card, on the lead card."""
        parts, coming = self._coming(parts)
        return brought(self._underway, parts, coming) if _has_history(parts) else [wait() for wait in coming]

    def give_back(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients from the lead card to the cards: there, for whatever node autograd hands them to."""
        return given_back(self._underway, gradients)

    def _coming(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Coming]]:
        """The parts as they have left, also those that nobody has sent yet, and what to wait for."""
        left = [part if id(part) in self._leaving else self.leave(card, part) for card, part in enumerate(parts)]
        begun = [self._leaving.pop(id(part), (part, None))[1] for part in left]
        return left, [self._underway.coming(part.detach(), arrival) for part, arrival in zip(left, begun, strict=True)]


def _has_history(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
