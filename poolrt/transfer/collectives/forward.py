"""Collectives on tensors without history: choose the algorithm, make the plan, run it, join the pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poolrt.transfer.collectives import plan as plans
from poolrt.transfer.collectives.arguments import Span
from poolrt.transfer.collectives.choice import Algorithm, Crossover, choose, ring_order
from poolrt.transfer.collectives.run import Departures, flat_pieces, joined, run, slices, unlinked
from poolrt.transfer.move import moved

Way = Crossover | Algorithm | None
"""how the algorithm is chosen: by what was measured, the algorithm itself, or by published figures"""


@dataclass(frozen=True)
class How:
    """What a caller may say about the manner of a collective."""

    way: Way = None
    unchanged: bool = False
    """nobody writes to what the cards bring until the results have been read"""
    note: Callable[[Tensor], None] | None = None
    """told of every copy from card to card"""


def broadcast(tensor: Tensor, targets: Sequence[torch.device], how: How) -> list[Tensor]:
    """See collective.broadcast."""
    homes = list(targets) if tensor.device in targets else [*targets, tensor.device]
    root, count = homes.index(tensor.device), tensor.numel()
    algorithm, order = _algorithm(how.way, tensor.nbytes, homes)
    if algorithm == "ring":
        plan = plans.broadcast_ring(order, count, root)
    else:
        maker = plans.broadcast_one_shot if algorithm == "one shot" else plans.broadcast_two_shot
        plan = maker(len(homes), count, root)
    brought = [tensor if card == root else None for card in range(len(homes))]
    results = run(plan, flat_pieces(brought, homes), homes, unchanged=how.unchanged, note=how.note)
    results[root] = [tensor]
    return [joined(pieces, tensor.shape) for pieces in results[: len(targets)]]


def reduce(tensors: Sequence[Tensor], device: torch.device, how: How) -> Tensor:
    """See collective.reduce."""
    homes = [tensor.device for tensor in tensors]
    root, count = homes.index(device) if device in homes else 0, tensors[0].numel()
    algorithm, order = _algorithm(how.way, tensors[0].nbytes, homes)
    if algorithm == "ring":
        plan = plans.reduce_ring(order, count, root)
    else:
        maker = plans.reduce_one_shot if algorithm == "one shot" else plans.reduce_two_shot
        plan = maker(len(homes), count, root)
    total = joined(
        run(plan, flat_pieces(tensors, homes), homes, unchanged=how.unchanged, note=how.note)[root], tensors[0].shape
    )
    return total if total.device == device else moved(total, device)


def all_reduce(tensors: Sequence[Tensor], how: How) -> list[Tensor]:
    """See collective.all_reduce."""
    homes, count = [tensor.device for tensor in tensors], tensors[0].numel()
    algorithm, order = _algorithm(how.way, tensors[0].nbytes, homes)
    if algorithm == "ring":
        plan = plans.all_reduce_ring(order, count)
    else:
        maker = plans.all_reduce_one_shot if algorithm == "one shot" else plans.all_reduce_two_shot
        plan = maker(len(homes), count)
    return [
        joined(pieces, tensors[0].shape)
        for pieces in run(plan, flat_pieces(tensors, homes), homes, unchanged=how.unchanged, note=how.note)
    ]


def all_gather(tensors: Sequence[Tensor], dim: int, how: How) -> list[Tensor]:
    """See collective.all_gather."""
    homes, lengths = [tensor.device for tensor in tensors], [tensor.shape[dim] for tensor in tensors]
    algorithm, order = _algorithm(how.way, max(tensor.nbytes for tensor in tensors), homes)
    ring = algorithm == "ring"
    plan = plans.all_gather_ring(order, lengths) if ring else plans.all_gather_one_shot(lengths)
    return [torch.cat(pieces, dim) for pieces in run(plan, slices(tensors, dim), homes)]


def reduce_scatter(tensors: Sequence[Tensor], dim: int, spans: Sequence[Span]) -> list[Tensor]:
    """See collective.reduce_scatter."""
    homes = [tensor.device for tensor in tensors]
    return [pieces[0] for pieces in run(plans.reduce_scatter(spans), slices(tensors, dim), homes)]


def gather(tensors: Sequence[Tensor], device: torch.device, dim: int) -> Tensor:
    """See collective.gather."""
    with Departures() as departures:
        arrivals = [departures.start(tensor, device) for tensor in tensors]
        return torch.cat([arrival.wait() for arrival in arrivals], dim)


def scatter(tensor: Tensor, homes: Sequence[torch.device], dim: int, spans: Sequence[Span]) -> list[Tensor]:
    """See collective.scatter."""
    parts = [tensor.narrow(dim, begin, end - begin) for begin, end in spans]
    with Departures() as departures:
        arrivals = [departures.start(part, home) for part, home in zip(parts, homes, strict=True)]
        return [arrival.wait() for arrival in arrivals]


def _algorithm(way: Way, nbytes: int, homes: Sequence[torch.device]) -> tuple[Algorithm, Sequence[int]]:
    """The algorithm, and the order of the cards in a ring. Few bytes need no look at the links."""
    if isinstance(way, str):
        return way, ring_order(len(homes), unlinked(homes, nbytes)) if way == "ring" else ()
    crossover = way or Crossover()
    if nbytes <= crossover.one_shot_up_to(len(homes)):
        return "one shot", ()
    missing = unlinked(homes, nbytes)
    return choose(nbytes, len(homes), missing, crossover), ring_order(len(homes), missing)
