"""Carries out the plans of collectives on torch's tensors: copies in side streams, sums in the cards' own streams.

Copies are started as soon as what they carry is there and waited for where they are read, so those over different links
overlap; a link that fails is replaced by the way through the host, as for every copy (move.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from poolrt.transfer.collective_choice import Pair
from poolrt.transfer.collective_plan import Added, CollectivePlan, Given
from poolrt.transfer.move import Arrival, start
from poolrt.transfer.routes import current

Pieces = Callable[[Given], Tensor]
"""what a card brings, by card and span"""


def run(plan: CollectivePlan, pieces: Pieces, devices: Sequence[torch.device]) -> list[list[Tensor]]:
    """Per card: the tensors that make up its result. All without history, in order with the cards' current streams.

    Raises:
        torch.AcceleratorError: if a link failed and the way through the host failed as well.
    """
    held: list[Arrival] = []
    for value in plan.values:
        if isinstance(value, Given):
            held.append(Arrival(pieces(value), crossed=False))
        elif isinstance(value, Added):
            held.append(Arrival(add_up([held[number].wait() for number in value.values]), crossed=False))
        else:
            held.append(start(held[value.value].wait(), devices[value.card]))
    return [[held[number].wait() for number in numbers] for numbers in plan.results]


def add_up(terms: Sequence[Tensor]) -> Tensor:
    """The sum of two or more tensors of one device, one after another in this order.

    Sums of half-precision numbers are kept in float32 and rounded once.
    """
    if len(terms) == 2:
        return terms[0] + terms[1]
    dtype = terms[0].dtype
    total = terms[0].float() if dtype.itemsize == 2 and dtype.is_floating_point else terms[0]
    total = total + terms[1]
    for term in terms[2:]:
        total.add_(term)
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
