"""Why nothing fits, and what would make it fit, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poolrt.planning.candidate import Candidate
from poolrt.planning.counts import in_words
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.search import Search
from poolrt.topology.topology import Card
from poolrt.units import MIB, format_nbytes

_CLOSE_ENOUGH = 1.002
_KINDS = ("weights", "gradients", "optimizer", "activations", "workspace")


@dataclass(frozen=True, kw_only=True)
class NearMiss:
    """The packing that comes closest to fitting."""

    candidate: Candidate
    usable_bytes: tuple[int, ...]
    """for each card, what a plan may fill"""

    @property
    def ratios(self) -> list[float]:
        """For each card, predicted peak over usable memory."""
        totals = (predicted.total for predicted in self.candidate.predicted_bytes)
        return [total / usable for total, usable in zip(totals, self.usable_bytes, strict=True)]

    @property
    def scale(self) -> float:
        """How many times its usable memory the most overfull card would need."""
        return max(self.ratios)

    @property
    def worst_card(self) -> int:
        """The card that lacks most, in proportion."""
        return self.ratios.index(self.scale)


def nearest_miss(search: Search) -> NearMiss:
    """The packing that needs least, were every card larger in the same proportion; found by bisection on that."""
    order = search.orders[0]
    low, high = 0.5, 1.0
    while (runs := search.pack(order, high)) is None:
        low, high = high, 2 * high
    while high / low > _CLOSE_ENOUGH:
        middle = (low + high) / 2
        if (better := search.pack(order, middle)) is None:
            low = middle
        else:
            high, runs = middle, better
    return NearMiss(candidate=search.candidate(order, runs), usable_bytes=search.usable_bytes)


def reason(
    miss: NearMiss, cards: Sequence[Card], *, batch_size: int, largest_batch: int, other_counts: Sequence[int]
) -> str:
    """Which card cannot hold its share, what fills it, and what would make it fit.

    Args:
        miss: the packing that comes closest.
        cards: the cards of the topology.
        batch_size: samples in the batch that was planned.
        largest_batch: samples in the largest batch that fits; 0 if not even one does.
        other_counts: numbers of micro-batches, not asked for, with which this batch fits.
    """
    card = cards[miss.worst_card]
    predicted = miss.candidate.predicted_bytes[card.index]
    usable = miss.usable_bytes[card.index]
    elsewhere = " even with optimizer state and weights elsewhere" if miss.candidate.spills else ""
    together = next((len(stage) for stage in miss.candidate.stages if card.index in stage), 1)
    split = f" with layers split over {together} cards" if together > 1 else ""
    of_them = f" of which {format_nbytes(usable)} may be used" if usable < card.memory_bytes else ""
    return (
        f"card {card.index} ({card.name}) has {format_nbytes(card.memory_bytes)}{of_them}, but would need "
        f"{format_nbytes(predicted.total)}{elsewhere}{split} with a batch of {batch_size} in "
        f"{in_words(miss.candidate.micro_batches)}: {format_nbytes(predicted.total - usable)} too little. "
        f"It would hold {_by_kind(predicted)}. "
        f"To make it fit: {'; or '.join(_remedies(miss, cards, largest_batch, other_counts))}."
    )


def host_reason(closest: Candidate, *, host_bytes: int, batch_size: int, largest_batch: int) -> str:
    """How much the host would have to hold of what does not fit the cards.

    Args:
        closest: the plan that needs least of the host.
        host_bytes: what it gives.
        batch_size: samples in the batch that was planned.
        largest_batch: samples in the largest batch that fits; 0 if not even one does.
    """
    pooled = [spill.pooled for spill in closest.spills]
    kinds = {
        "optimizer state": sum(card.optimizer.host for card in pooled),
        "temporaries of its step": sum(card.temporaries.host for card in pooled),
        "weights": sum(card.weights.host for card in pooled),
    }
    held = ", ".join(f"{kind} {format_nbytes(nbytes)}" for kind, nbytes in kinds.items() if nbytes)
    smaller = [f"a batch of at most {largest_batch} samples"] if largest_batch else []
    remedies = [f"at least {_in_mib(closest.host_bytes)} of host memory", *smaller, "more or larger cards"]
    return (
        f"with a batch of {batch_size} in {in_words(closest.micro_batches)}, {format_nbytes(closest.host_bytes)} do "
        f"not fit the cards and would go to the host ({held}), which gives {format_nbytes(host_bytes)}: "
        f"{format_nbytes(closest.host_bytes - host_bytes)} too little. To make it fit: {'; or '.join(remedies)}."
    )


def _in_mib(nbytes: int) -> str:
    """Rounded up, so that it can be given back as it is read."""
    return f"{-(-nbytes // MIB)} MiB"


def _by_kind(predicted: PredictedBytes) -> str:
    return ", ".join(f"{kind} {format_nbytes(getattr(predicted, kind))}" for kind in _KINDS)


def _remedies(miss: NearMiss, cards: Sequence[Card], largest_batch: int, other_counts: Sequence[int]) -> list[str]:
    remedies = []
    if other_counts:
        remedies.append(in_words(other_counts[0]))
    if largest_batch:
        remedies.append(f"a batch of at most {largest_batch} samples")
    sizes = {card.memory_bytes for card in cards}
    if len(sizes) == 1:
        remedies.append(f"cards of at least {format_nbytes(miss.scale * sizes.pop())} each")
    else:
        remedies.append(f"{miss.scale:.2f} times the memory on every card")
    if not largest_batch:
        remedies.append("more cards, since not even a batch of one sample fits these")
    return remedies
