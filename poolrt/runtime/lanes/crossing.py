"""Tensors that cross from card to card inside one lane: each is copied once per (tensor, version, card)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from poolrt.runtime.batches.merge_rule import carry_story
from poolrt.runtime.regions.running.parted import brought_together
from poolrt.runtime.state.trees import is_plain, map_tensors
from poolrt.transfer.move import Arrival, move, moved, start
from poolrt.transfer.streams import runs_beside

Flights = dict[int, Arrival]
"""copies on their way, by id of the tensor"""


class Crossings:
    """The copies one micro-batch has made. A mask that every layer reads crosses to a card once, not once per layer.

    A tensor that goes to several cards is relayed: card 0 -> 1 -> 2. Its gradients then come back in the order of one
    card, ((g2 + g1) + g0), so that sums have the same bits.

    A layer may change its input in place. Where the input was a copy, the copy is the tensor from then on: whoever
    reads the original later is given the copy, as on one card it would see the change.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], tuple[weakref.ref[Tensor], dict[torch.device, Tensor]]] = {}
        self._versions: dict[int, int] = {}  # of each copy when it was made, by id
        self._changed: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by id of the original
        self.copied_tensors = 0
        self.copied_nbytes = 0

    def find(self, tensor: Tensor, device: torch.device) -> Tensor | None:
        """The copy of `tensor` on `device` made earlier, if the tensor has not changed since and the copy will do."""
        copy = self._known(tensor).get(device)
        return copy if copy is not None and _serves(copy, tensor) else None

    def latest(self, tensor: Tensor) -> Tensor:
        """The last copy made of `tensor`, or itself, and not in parts: what a further copy starts from."""
        copies = reversed(self._known(tensor).values())
        found = next((copy for copy in copies if _serves(copy, tensor)), None)
        return brought_together(tensor) if found is None else found

    def _known(self, tensor: Tensor) -> dict[torch.device, Tensor]:
        source, copies = self._copies.get(_key(tensor), (None, {}))
        return copies if source is not None and source() is tensor else {}

    def send(
        self,
        tensors: Sequence[Tensor],
        device: torch.device,
        given: Mapping[torch.device, torch.Event],
        flights: Flights,
    ) -> None:
        """Start to copy what has to cross to `device`, as far as links take time; nobody need hold that card.

        Args:
            tensors: what will be read there.
            device: where to.
            given: by device, when the tensors of the card that was just left are there.
            flights: where to note what has been started.
        """
        for tensor in tensors:
            source = self.latest(tensor)
            if id(tensor) not in flights and runs_beside(source.device, device) and self.find(tensor, device) is None:
                flights[id(tensor)] = start(source, device, given.get(source.device))

    def fetch(self, tensor: Tensor, device: torch.device, flights: Flights) -> Tensor:
        """The values of `tensor` on `device`, without history: what has arrived, or a copy made now."""
        arrival = flights.get(id(tensor))
        return moved(self.latest(tensor).detach(), device) if arrival is None else arrival.wait()

    def move(self, tensor: Tensor, device: torch.device, arrived: Tensor | None = None) -> Tensor:
        """`tensor` on `device`: itself if it is there, else its one copy.

        Args:
            tensor: what to move.
            device: where to.
            arrived: its copy, if that was made already (a hop's output).
        """
        tensor = self.current(tensor)
        if tensor.device == device:
            return tensor
        found = self.find(tensor, device)
        if found is not None:
            return found
        copy = carry_story(tensor, move(self.latest(tensor), device) if arrived is None else arrived)
        self._remember(tensor, device, copy)
        self.count(copy)
        return copy

    def count(self, copy: Tensor) -> None:
        """One more copy was made on behalf of this micro-batch."""
        self.copied_tensors += 1
        self.copied_nbytes += copy.nbytes

    def _remember(self, tensor: Tensor, device: torch.device, copy: Tensor) -> None:
        key = _key(tensor)
        if not self._known(tensor):
            self._copies[key] = (weakref.ref(tensor, self._forget(key)), {})
        self._copies[key][1][device] = copy
        self._versions[id(copy)] = _version(copy)

    def note_changes(self) -> None:
        """Find the copies that were changed in place since they were made."""
        for source, copies in self._copies.values():
            for copy in copies.values():
                if self._versions[id(copy)] != _version(copy) and (original := source()) is not None:
                    self._versions[id(copy)] = _version(copy)
                    self._changed[id(original)] = (source, copy)

    @property
    def any_changed(self) -> bool:
        """Whether some tensor must be read from its copy."""
        return bool(self._changed)

    def current(self, tensor: Tensor) -> Tensor:
        """`tensor`, or the copy of it that was changed in place."""
        source, copy = self._changed.get(id(tensor), (None, tensor))
        return copy if source is not None and source() is tensor else tensor

    def current_all(self, value: Any) -> Any:
        """`value` with every tensor inside as it is now."""
        return map_tensors(value, self.current)

    def move_all(self, value: Any, device: torch.device) -> Any:
        """`value` with every tensor inside on `device`; at once where all are there already."""
        if not self._changed and is_plain(value, lambda tensor: tensor.device == device):
            return value
        return map_tensors(value, lambda tensor: self.move(tensor, device))

    def clear(self) -> None:
        """Let go of every copy."""
        self._copies.clear()
        self._versions.clear()
        self._changed.clear()

    def _forget(self, key: tuple[int, int]) -> Callable[[weakref.ref[Tensor]], None]:
        copies = weakref.ref(self)

        def forget(_dead: weakref.ref[Tensor]) -> None:
            crossings = copies()
            if crossings is not None:
                crossings._copies.pop(key, None)

        return forget


def _serves(copy: Tensor, tensor: Tensor) -> bool:
    """Not so a copy made under no_grad or inference mode, once gradients are wanted."""
    lost_gradient = torch.is_grad_enabled() and tensor.requires_grad and not copy.requires_grad
    lost_autograd = copy.is_inference() and not tensor.is_inference() and not torch.is_inference_mode_enabled()
    return not lost_gradient and not lost_autograd


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), _version(tensor)


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
