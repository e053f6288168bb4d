"""Every allocation and free of one training step, in order, so that any allocator can be asked to serve it.

standing    what is there before the step and still there after it: weights, optimizer state
events      (block, +nbytes) a block is born, (block, -nbytes) it is freed; every birth has its free

    address:   64  96  64  64        a block is a birth and its free; an address that comes back is another block
    bytes:     +8  +4  -8  +2  ...
    block:      0   1   0   2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a step asks of an allocator.

    Attributes:
        standing: bytes of each block that outlives the step.
        events: (block, signed bytes) in order; blocks are numbered from 0 as they are born.
    """

    standing: tuple[int, ...]
    events: tuple[tuple[int, int], ...]

    @cached_property
    def live_nbytes(self) -> list[int]:
        """Bytes live after each event, those that stand included."""
        standing = sum(self.standing)
        return [standing + live for live in accumulate(nbytes for _block, nbytes in self.events)]

    @property
    def peak_nbytes(self) -> int:
        """The most bytes live at any moment."""
        return max(self.live_nbytes, default=sum(self.standing))

    @property
    def peak_at(self) -> int:
        """How many events there are up to and with the first that reaches the peak."""
        return self.live_nbytes.index(self.peak_nbytes) + 1 if self.events else 0

    @property
    def blocks(self) -> int:
        """How many blocks are born in the step."""
        return sum(nbytes > 0 for _block, nbytes in self.events)


def numbered(allocations: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Events from (address, signed bytes): an address that is used again is another block.

    Blocks that were born before the step, and those that outlive it, are no part of it.
    """
    numbers = count()
    ends = _ends(allocations)
    alive: dict[int, int] = {}
    for moment, (address, nbytes) in enumerate(allocations):
        if moment in ends:
            alive[address] = next(numbers)
            yield alive[address], nbytes
        elif address in alive and nbytes < 0:
            yield alive.pop(address), nbytes


def _ends(allocations: Sequence[tuple[int, int]]) -> dict[int, int]:
    """For each birth whose block is freed, when that is; both as positions."""
    ends: dict[int, int] = {}
    born: dict[int, int] = {}
    for moment, (address, nbytes) in enumerate(allocations):
        if nbytes > 0:
            born[address] = moment
        elif address in born:
            ends[born.pop(address)] = moment
    return ends
