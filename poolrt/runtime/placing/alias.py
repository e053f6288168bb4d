"""Aliases: leaves that stand in for the parameters while the lanes run, so that each micro-batch has its own graph.

    parameter p (card 0)   ->  alias on card 0: p.detach()                 accumulates the gradients of all lanes
                           ->  alias on card 1: a copy, for a tied layer   likewise; added to the first one at home
    piece 1 of q (card 1)  ->  alias on card 1                             the pieces' gradients together are q's

User hooks on a parameter, and its `.grad`, see one summed gradient per backward, as without poolrt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from poolrt.runtime.placing.place import Placement
from poolrt.runtime.sharded.gradients import shard_tensor
from poolrt.runtime.sharded.parameter import ShardedParameter, gradient_from_pieces
from poolrt.runtime.sharded.tensor import Sharded
from poolrt.runtime.state.slot import Slot
from poolrt.transfer.move import move


@dataclass
class _StandIns:
    """What stands in for a parameter or one piece, in the order in which the model registers the places that use it."""

    parameter: Tensor
    uses: int
    aliases: dict[tuple[torch.device, int], nn.Parameter] = field(default_factory=dict)

    def at(self, device: torch.device, learns: bool) -> nn.Parameter:
        """The stand-in for the next place, which runs on `device`.

        One per card is enough for two places: a sum of two has the same bits in any order. With more, each place has
        its own, so that they can be added as one card would add them.
        """
        key = (device, len(self.aliases) if self.uses > 2 else 0)
        if key not in self.aliases:
            self.aliases[key] = nn.Parameter(_values(self.parameter, device), requires_grad=learns)
        return self.aliases[key]

    def take_gradient(self) -> Tensor | None:
        """The sum of the gradients, last use first as backward meets them, on the parameter's device."""
        total: Tensor | None = None
        for alias in reversed(self.aliases.values()):
            gradient, alias.grad = alias.grad, None
            if gradient is not None:
                gradient = move(gradient, self.parameter.device)
                total = gradient if total is None else total.add_(gradient)
        return total


def _values(parameter: Tensor, device: torch.device) -> Tensor:
    """On `device`; one that lies in pieces, and is used whole, gathered there."""
    values = parameter.detach()
    return values.whole(device) if isinstance(values, Sharded) else move(values, device)


@dataclass
class _Learner:
    """One of the user's parameters: what stands in for it, or for its pieces by their position."""

    parameter: nn.Parameter
    parts: dict[int | None, _StandIns] = field(default_factory=dict)
    """None: the whole"""

    def take_gradient(self) -> Tensor | None:
        """The summed gradient, in pieces if the parameter is."""
        whole = self.parts[None].take_gradient() if None in self.parts else None
        if not isinstance(self.parameter, ShardedParameter):
            return whole
        sharding = self.parameter.sharding
        in_pieces = gradient_from_pieces(
            self.parameter,
            [self.parts[card].take_gradient() if card in self.parts else None for card in sharding.cards],
        )
        if whole is None:
            return in_pieces
        whole = shard_tensor(whole, sharding)
        return whole if in_pieces is None else in_pieces + whole


class Aliases:
    """The stand-ins of one forward, and of the backward that may follow it."""

    def __init__(self, placement: Placement, learning: bool) -> None:
        self._of: dict[int, _StandIns] = {}
        self._learners: dict[int, _Learner] = {}
        self._swaps: list[tuple[Slot, nn.Parameter, nn.Parameter]] = []
        slots = placement.slots()
        uses = Counter(id(slot.parameter) for slot in slots)
        for slot in slots:
            parameter, device = slot.parameter, placement.devices[slot.card]
            owner, position = placement.owner_of(parameter)
            learns = learning and owner.requires_grad
            if parameter.device != device or learns:
                known = self._of.setdefault(id(parameter), _StandIns(parameter, uses[id(parameter)]))
                self._swaps.append((slot, parameter, known.at(device, learns)))
                if learns:
                    self._learners.setdefault(id(owner), _Learner(owner)).parts[position] = known

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that have stand-ins, in the order of `take_gradients`."""
        return [learner.parameter for learner in self._learners.values()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules hold the stand-ins; afterwards their own parameters again, whatever happened."""
        try:
            for slot, _, alias in self._swaps:
                slot.module._parameters[slot.name] = alias
            self._refresh_flat_weights()
            yield
        finally:
            for slot, parameter, _ in self._swaps:
                slot.module._parameters[slot.name] = parameter
            self._refresh_flat_weights()

    def _refresh_flat_weights(self) -> None:
        """LSTM and GRU keep a second list of their parameters and read only that."""
        for module in {slot.module for slot, _, _ in self._swaps}:
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    def take_gradients(self) -> list[Tensor | None]:
        """The summed gradient of each of `parameters` where it lies; the stand-ins keep none."""
        return [learner.take_gradient() for learner in self._learners.values()]

    def drop_gradients(self) -> None:
        """Forget what was accumulated, after a backward that failed."""
        for known in self._of.values():
            for alias in known.aliases.values():
                alias.grad = None
