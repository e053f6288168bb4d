"""Logical cards hold to their share: of the memory, by a pool with that limit; of the time, by a stream of their own.

    one GPU   |#### card 0 ####    |## card 1 ##        |  what no logical card has  |
              |<----- its cap ---->|<----- its cap ---->|

    stream of the caller   [batch] o .................................. o [loss]
    stream of card 0                '-> [layers of card 0] o            ^
    stream of card 1                                        '-> [layers] o

A card with memory of its own needs neither: there the device itself refuses, and has a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from poolrt.memory.pool import Pool
from poolrt.topology.topology import Topology
from poolrt.transfer.streams import current_stream, mark, record, working_in


class Caps:
    """One pool and one stream for each card of `topology`; nothing in a pool lies on another card or the host."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._pools = [Pool(topology.subset([card.index])) for card in topology.cards]
        self._streams = [torch.Stream(device=torch.device(card.device)) for card in topology.cards]

    @contextmanager
    def on(self, card: int) -> Iterator[None]:
        """Meanwhile this thread works as `card`: after all it did before, and before all it does afterwards."""
        device = self._streams[card].device
        with self.work(card, [mark(device)]):
            yield
        self.mark(card).wait(current_stream(device))

    @contextmanager
    def work(self, card: int, after: Iterable[torch.Event]) -> Iterator[None]:
        """Meanwhile this thread works in the stream of `card`, once `after` have passed, and in its share."""
        stream = self._streams[card]
        for event in after:
            event.wait(stream)
        with self._pools[card].use(home=0), working_in(stream):
            yield

    def begin(self) -> list[torch.Event]:
        """What the cards' work is to come after: all that this thread has done.

        So outputs and gradients that the caller has read may be freed without a word: their memory is given out
        anew within the next work of a card, which comes after that.
        """
        return [mark(device) for device in dict.fromkeys(stream.device for stream in self._streams)]

    def end(self) -> None:
        """What this thread does from now on comes after all that the cards were given."""
        for card, stream in enumerate(self._streams):
            self.mark(card).wait(current_stream(stream.device))

    def mark(self, card: int) -> torch.Event:
        """The moment at which all that `card` was given until now has been done."""
        return record(self._streams[card])

    def lend(self, tensors: Iterable[Tensor], card: int) -> None:
        """`card` reads these tensors, which may be of another's share: their memory is not used anew before it has."""
        stream = self._streams[card]
        for tensor in tensors:
            if tensor.device == stream.device:
                tensor.record_stream(stream)

    def used_nbytes(self, card: int) -> int:
        """Bytes of live tensors in the share of `card`, as rounded."""
        return self._pools[card].stats().live_nbytes

    def leave_room_for(self, nbytes: Sequence[int]) -> None:
        """Take so many bytes of each card's share away, for a pool that is used beside it."""
        for card, pool, others in zip(self._topology.cards, self._pools, nbytes, strict=True):
            pool.set_limit(0, card.memory_bytes - others)


def caps_of(topology: Topology) -> Caps | None:
    """The caps of logical cards; None for cards with memory of their own."""
    return Caps(topology) if any(card.kind == "logical" for card in topology.cards) else None
