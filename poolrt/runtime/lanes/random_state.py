"""Randomness of lanes: each stay of a micro-batch on a card has its own seed, so timing cannot change a dropout mask.

The seed of a forward is one draw from the user's default generator; a stay's seed is a hash of
(forward's seed, card, visit, micro-batch). Same seed and same plan give the same bits. Cards that run layers together
are seeded together, each with a seed of its own. Each call of a layer is seeded too, by its number in the lane: a
checkpoint may run it again without what came before it in the stay.

Logical cards of one GPU share its generator: there a stay keeps the generator to itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from poolrt.runtime.lanes.turnstile import Ticket
from poolrt.runtime.state.generators import generator_of, mixed

_OF_A_CALL = 1
"""a word more than a stay has, so that their seeds differ"""


class CardSeeds:
    """Seeds the cards' generators under the ticket, and puts the generators back afterwards.

    Args:
        devices: of the cards.
        together: lead card to all cards of its stage, itself first; those that are not named are alone.
    """

    def __init__(self, devices: Sequence[torch.device], together: Mapping[int, Sequence[int]] | None = None) -> None:
        self._devices = devices
        self._together = together or {}
        self._alone = {device: threading.Lock() for device in devices if devices.count(device) > 1}
        self._forward_seed = int(torch.randint(1 << 62, ()).item())

    def seed(self, card: int, ticket: Ticket) -> None:
        """Seed the generators of `card`, and of the cards with it, for this stay of this micro-batch."""
        for device in self._kept_alone(card):
            self._alone[device].acquire()
        self._seed(card, (ticket.visit, ticket.micro_batch))

    def seed_call(self, card: int, call: int, micro_batch: int) -> None:
        """Seed them for a micro-batch's call of a layer, the `call`-th of this forward."""
        self._seed(card, (call, micro_batch, _OF_A_CALL))

    def _seed(self, card: int, words: Sequence[int]) -> None:
        for each in reversed(self._together.get(card, (card,))):  # the lead card's last, if they share one
            generator_of(self._devices[each]).manual_seed(mixed((self._forward_seed, each, *words)) >> 1)

    def leave(self, card: int) -> None:
        """The stay on `card` is over."""
        for device in self._kept_alone(card):
            self._alone[device].release()

    def _kept_alone(self, card: int) -> list[torch.device]:
        """Devices whose generator a stay on `card` keeps to itself, in one order for all."""
        used = {self._devices[each] for each in self._together.get(card, (card,))}
        return [device for device in self._alone if device in used]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The cards' generators are afterwards as they were before."""
        states = {device: generator_of(device).get_state() for device in dict.fromkeys(self._devices)}
        try:
            yield
        finally:
            for device, state in states.items():
                generator_of(device).set_state(state)
