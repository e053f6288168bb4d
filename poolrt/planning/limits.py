"""What a plan must keep to, beside the cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poolrt.errors import ConfigurationError
from poolrt.planning.costs import CALL_OVERHEAD_S
from poolrt.planning.optimizers import optimizer_cost
from poolrt.topology.topology import Topology

OutputCard = Literal["last", "host"] | int
"""where whole outputs are put together: on the card of the last call, on the host, or on a card by its index"""

Spill = Literal["auto", "never"] | int
"""what does not fit the cards: goes to the host as far as that has room ("auto"), up to so many bytes, or nowhere"""

GPU_RESERVE = 0.05
"""part of a GPU that a plan leaves free by default: its allocator rounds, and cannot fill every gap"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a plan must keep to, beside the cards.

    Raises:
        ConfigurationError: if the optimizer is unknown, or another value makes no sense.
    """

    optimizer: str = "adamw"
    output_card: OutputCard = "last"
    reserve_fraction: float | None = None
    """part of each card's memory that stays free; None: GPU_RESERVE of a GPU, nothing of other cards"""
    call_overhead_s: float = CALL_OVERHEAD_S
    """fixed cost of one call of one micro-batch, forward or backward"""
    host_bytes: int | None = None
    """what the host gives to what does not fit the cards; None: nothing is spilled, not even to other cards"""

    def __post_init__(self) -> None:
        optimizer_cost(self.optimizer)
        if self.reserve_fraction is not None and not 0 <= self.reserve_fraction < 1:
            raise ConfigurationError(f"reserve_fraction is a part of a card from 0 to 1, not {self.reserve_fraction}")
        if self.output_card not in ("last", "host") and not isinstance(self.output_card, int):
            raise ConfigurationError(f'output_card is "last", "host" or a card index, not {self.output_card!r}')
        if not self.call_overhead_s >= 0:
            raise ConfigurationError(f"call_overhead_s cannot be negative, got {self.call_overhead_s}")
        if self.host_bytes is not None and not _is_count(self.host_bytes):
            raise ConfigurationError(f"the host gives a number of bytes from 0 on, not {self.host_bytes!r}")

    def check(self, topology: Topology) -> None:
        """Raises ConfigurationError if there are no cards, or the output card is none of them."""
        if not topology.cards:
            raise ConfigurationError("the topology has no cards; make some with poolrt.virtual(cards=2, memory='4GiB')")
        if isinstance(self.output_card, int) and not 0 <= self.output_card < len(topology.cards):
            raise ConfigurationError(
                f"output_card is {self.output_card}, but the cards are 0..{len(topology.cards) - 1}"
            )

    def usable_bytes(self, topology: Topology) -> tuple[int, ...]:
        """For each card, the memory that a plan may fill."""
        reserves = (
            GPU_RESERVE * (card.kind in ("cuda", "logical")) if self.reserve_fraction is None else self.reserve_fraction
            for card in topology.cards
        )
        return tuple(
            max(1, int(card.memory_bytes * (1 - reserve)))
            for card, reserve in zip(topology.cards, reserves, strict=True)
        )


def host_limit(spill: Spill, host_bytes: int) -> int | None:
    """What the host gives to spilled tensors, in bytes; None if nothing is spilled.

    Args:
        spill: what the user asked for.
        host_bytes: what there is, for "auto".

    Raises:
        ConfigurationError: if `spill` is neither "auto" nor "never" nor a number of bytes.
    """
    if spill == "never":
        return None
    if spill == "auto":
        return host_bytes
    if not _is_count(spill):
        raise ConfigurationError(f'spill is "auto", "never" or a number of bytes on the host, not {spill!r}')
    return int(spill)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
