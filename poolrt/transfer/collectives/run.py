"""Carries out the plans of collectives on torch's tensors: copies in side streams, sums in the cards' own streams.

Copies are started as soon as what they carry is there and waited for where they are read, so those over different links
overlap; a link that fails is replaced by the way through the host, as for every copy (move.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from types import TracebackType

import torch
from torch import Tensor

from poolrt.transfer.collectives.choice import Pair
from poolrt.transfer.collectives.plan import Added, CollectivePlan, Given
from poolrt.transfer.move import Arrival, start
from poolrt.transfer.routes import current
from poolrt.transfer.streams import current_stream

Pieces = Callable[[Given], Tensor]
"""what a card brings, by card and span"""


Note = Callable[[Tensor], None]
"""told of every copy from card to card"""


def run(
    plan: CollectivePlan,
    pieces: Pieces,
    devices: Sequence[torch.device],
    *,
    unchanged: bool = False,
    note: Note | None = None,
) -> list[list[Tensor]]:
    """Per card: the tensors that make up its result. All without history, in order with the cards' current streams.

    Args:
        plan: what to do.
        pieces: what the cards bring.
        devices: of the cards.
        unchanged: whether nobody will write to what the cards bring until the results have been read. Their streams
            then go on at once instead of waiting until it has been sent.
        note: told of every copy.

    Raises:
        torch.AcceleratorError: if a link failed and the way through the host failed as well.
    """
    with Departures(note) as departures:
        held: list[Arrival] = []
        for value in plan.values:
            if isinstance(value, Given):
                held.append(Arrival(pieces(value), crossed=False))
            elif isinstance(value, Added):
                held.append(Arrival(add_up([held[number].wait for number in value.values]), crossed=False))
            else:
                kept = unchanged or not isinstance(plan.values[value.value], Given)
                held.append(departures.start(held[value.value].wait(), devices[value.card], kept=kept))
        return [[held[number].wait() for number in numbers] for numbers in plan.results]


class Departures:
    """Copies that belong together: afterwards all are done with, also if one of them has failed.

    At the end the streams of what was sent go on when it has been read, so that it may be written to again.
    """

    def __init__(self, note: Note | None = None) -> None:
        self._note = note
        self._sent: list[tuple[torch.device, torch.Event]] = []
        self._arrivals: list[Arrival] = []

    def start(self, tensor: Tensor, device: torch.device, *, kept: bool = False) -> Arrival:
        """Begin a copy. If the tensor is `kept` as it is, its stream need not wait."""
        arrival = start(tensor, device)
        self._arrivals.append(arrival)
        if self._note is not None and arrival.crossed:
            self._note(tensor)
        if not kept and arrival.arrived is not None:
            self._sent.append((tensor.device, arrival.arrived))
        return arrival

    def __enter__(self) -> Departures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for arrival in self._arrivals:
                arrival.abandon()
            return
        for device, arrived in self._sent:
            with suppress(torch.AcceleratorError):  # the reader was told, and has it by another way
                current_stream(device).wait_event(arrived)


def add_up(terms: Sequence[Callable[[], Tensor]]) -> Tensor:
    """The sum of two or more tensors of one device, one after another in this order, each asked for when it is due.

    Sums of half-precision numbers are kept in float32 and rounded once.
    """
    first, second = terms[0](), terms[1]()
    if len(terms) == 2:
        return first + second
    dtype = first.dtype
    total = first.float() if dtype.itemsize == 2 and dtype.is_floating_point else first
    total = total + second
    for term in terms[2:]:
        total.add_(term())
    return total.to(dtype)


def flat_pieces(tensors: Sequence[Tensor | None], devices: Sequence[torch.device]) -> Pieces:
    """Spans of elements in order, as flat tensors; a whole tensor keeps its shape. Cards without one bring None."""
    like = next(tensor for tensor in tensors if tensor is not None)

    @cache
    def flat(card: int) -> Tensor:
        tensor = tensors[card]
        assert tensor is not None, "a plan takes elements only from cards that bring some"
        return tensor.reshape(-1)

    def piece(given: Given) -> Tensor:
        if (given.begin, given.end) == (0, like.numel()):
            whole = tensors[given.card]
            return torch.empty_like(like, device=devices[given.card]) if whole is None else whole
        if given.begin == given.end:
            return like.new_empty(0, device=devices[given.card])
        return flat(given.card)[given.begin : given.end]

    return piece


def slices(tensors: Sequence[Tensor], dim: int) -> Pieces:
    """Spans along a dimension."""
    return lambda given: tensors[given.card].narrow(dim, given.begin, given.end - given.begin)


def joined(pieces: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Flat pieces as one tensor of this shape; a single one as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat([piece.reshape(-1) for piece in pieces]).view(shape)


def unlinked(devices: Sequence[torch.device], nbytes: int) -> frozenset[Pair]:
    """The ordered pairs of cards whose copies of `nbytes` go through the host now."""
    routes, cards = current(), range(len(devices))
    return frozenset(
        (source, target)
        for source in cards
        for target in cards
        if source != target and routes.between(devices[source], devices[target], nbytes) == "HOST"
    )
