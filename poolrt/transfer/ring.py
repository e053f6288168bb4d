"""The order of work of the bounce ring, as values: what is copied, recorded and awaited in which stream.

Bytes go from the source card into a buffer of the host ("down") and from there to the target card ("up"). With two or
three buffers both directions work at the same time:

    5 chunks, 3 buffers a b c; time goes right

    down   [0>a] [1>b] [2>c] [3>a] [4>b]              n chunks of equal time take n + 1 slots
    up           [a>0] [b>1] [c>2] [a>3] [b>4]

    full   ------a-----b-----c-----a-----b->          up waits for it: the buffer holds the chunk
    free   ------------a-----b-----c-----a-----b->    down waits for it: the chunk before has left the buffer

Down also waits until the source has its values ("given"), up until nobody reads the target any more ("vacant"). Of all
these waits none may be missing; a test leaves them out one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Side = Literal["producer", "down", "up", "consumer"]
"""whose stream: of the source card's work, of copies down, of copies up, of the target card's work"""

EventName = tuple[Literal["given", "vacant", "full", "free", "drained", "arrived"], int]
"""what has happened, and to which buffer (0 where it is about none)"""

GIVEN: EventName = ("given", 0)
VACANT: EventName = ("vacant", 0)
DRAINED: EventName = ("drained", 0)
ARRIVED: EventName = ("arrived", 0)

CHUNK_NBYTES = 4 << 20
LEAST_CHUNK_NBYTES = 512 << 10
BUFFERS = 3
_ALIGNMENT = 512


@dataclass(frozen=True)
class Copy:
    """Chunk `chunk` between its card and buffer `buffer`."""

    side: Side
    chunk: int
    buffer: int


@dataclass(frozen=True)
class Record:
    """`event` happens when the stream has come this far."""

    side: Side
    event: EventName


@dataclass(frozen=True)
class Wait:
    """The stream goes on when `event` has happened."""

    side: Side
    event: EventName


Step = Copy | Record | Wait

BEFORE: Sequence[Step] = (Record("producer", GIVEN),)
"""what makes a copy follow the work that the source's card was given before; for the target's card `ring_steps` does"""
AFTER: Sequence[Step] = (Wait("producer", DRAINED), Wait("consumer", ARRIVED))
"""what makes the work that both cards are given afterwards follow the copy"""


def chunk_nbytes(nbytes: int) -> int:
    """The size of a chunk for a copy of `nbytes`: 4 MiB; a quarter of a small copy, but at least 512 KiB."""
    quarter = -(-nbytes // 4)
    aligned = -(-quarter // _ALIGNMENT) * _ALIGNMENT
    return max(LEAST_CHUNK_NBYTES, min(CHUNK_NBYTES, aligned))


@lru_cache(maxsize=256)
def ring_steps(chunks: int, buffers: int = BUFFERS, *, new_target: bool = False) -> tuple[Step, ...]:
    """What the ring does with `chunks` chunks, in an order in which it may be enqueued.

    The first round waits for free buffers too: the copy before may still be on its way. Nobody can be reading a
    `new_target`, so nothing is waited for there. The first chunk is under way before the target is thought of.
    """
    vacated: list[Step] = [] if new_target else [Record("consumer", VACANT), Wait("up", VACANT)]
    steps: list[Step] = [Wait("down", GIVEN)]
    for chunk in range(chunks):
        buffer = chunk % buffers
        steps += [
            Wait("down", ("free", buffer)),
            Copy("down", chunk, buffer),
            Record("down", ("full", buffer)),
            *(vacated if chunk == 0 else []),
            Wait("up", ("full", buffer)),
            Copy("up", chunk, buffer),
            Record("up", ("free", buffer)),
        ]
    return (*steps, Record("down", DRAINED), Record("up", ARRIVED))
