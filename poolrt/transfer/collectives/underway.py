"""Copies that one exchange has begun: what autograd's nodes (nodes.py) at their two ends share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from poolrt.transfer.collectives import forward as forward_only
from poolrt.transfer.collectives.choice import Crossover
from poolrt.transfer.collectives.forward import How, Way
from poolrt.transfer.collectives.run import Note
from poolrt.transfer.move import Arrival, Flight, start
from poolrt.transfer.streams import mark, runs_beside

Coming = Callable[[], Tensor]
"""waits for a tensor, and returns it"""


class Underway:
    """Copies of one exchange, begun at one end and waited for at the other.

    Args:
        devices: of the cards; the first is the lead card's.
        note: told of every copy from card to card; from several threads in backward.
        way: how large tensors go among more than two cards.
    """

    def __init__(self, devices: Sequence[torch.device], note: Note | None, way: Way) -> None:
        self.devices, self.lead = tuple(devices), devices[0]
        self.gradients_return = False
        """whether in backward the lead card waits for the others in the end"""
        self._note, self._way = note, way
        self._begun: dict[tuple[int, int], Arrival] = {}  # by card and address of what the engine passes on
        self._held: list[Tensor] = []

    def start(self, tensor: Tensor, device: torch.device) -> Arrival:
        """Begin a copy."""
        arrival = start(tensor, device)
        if arrival.crossed and self._note is not None and "cpu" not in (tensor.device.type, device.type):
            self._note(tensor)
        return arrival

    def early(self, tensor: Tensor, device: torch.device) -> Arrival | None:
        """The same, if it goes on while the cards work. If not, it had better be made when there is need of it."""
        return self.start(tensor, device) if runs_beside(tensor.device, device) else None

    def coming(self, part: Tensor, arrival: Arrival | None) -> Coming:
        """A part on the lead card: what has been begun, or a copy made when it is asked for."""
        return (lambda: self.start(part, self.lead).wait()) if arrival is None else arrival.wait

    def broadcast(self, tensor: Tensor) -> list[Arrival]:
        """Begin the copies for all cards."""
        if tensor.device != self.lead or self.in_one_shot(tensor):
            return [self.start(tensor, device) for device in self.devices]
        copies = forward_only.broadcast(tensor.detach(), self.devices, How(self._way, unchanged=True, note=self._note))
        return [
            Arrival(copy, Flight(tensor, "LOCAL", mark(copy.device), ()))
            if copy.device != tensor.device
            else Arrival(tensor.detach(), crossed=False)
            for copy in copies
        ]

    def sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """What lies on several cards, added up on the lead card, in order with this thread's streams.

        Not round a ring, which would add in another order: a link that is lost must not change the bits.
        """
        way: Way = self._way if isinstance(self._way, str) else "two shots"
        return forward_only.reduce(tensors, self.lead, How(way, unchanged=True, note=self._note))

    def in_one_shot(self, tensor: Tensor) -> bool:
        """Whether every copy goes straight from where the tensor is to where it is wanted. Links have no say in it."""
        if isinstance(self._way, str):
            return self._way == "one shot"
        cards = len(self.devices)
        if cards <= 2 or (self._way is None and not any(runs_beside(self.lead, device) for device in self.devices)):
            return True
        return tensor.nbytes <= (self._way or Crossover()).one_shot_up_to(cards)

    # ---- from one node to the other

    def pass_on(self, card: int, tensor: Tensor, arrival: Arrival) -> None:
        """The engine will hand `tensor` to the node at the other end, which is to wait for `arrival`."""
        self._begun[card, tensor.data_ptr()] = arrival

    def take(self, card: int, tensor: Tensor) -> Arrival | None:
        """What `pass_on` was told; None for a tensor that came by another way."""
        return self._begun.pop((card, tensor.data_ptr()), None)

    def hold(self, gradient: Tensor) -> None:
        """Have nobody add to it in place until the other cards have answered: they may not have read it."""
        self._held.append(gradient)

    def let_go(self) -> None:
        """They have answered."""
        self._held.clear()
