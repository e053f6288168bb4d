"""Where a split model's bytes lie: pieces of parameters on all cards, everything else on the first one, the lead card.

card 0   pieces 0, other parameters, buffers           card 1   pieces 1           card 2   pieces 2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime import optimizer_state
from poolrt.runtime.place import Placement, WeightsBefore
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.tensor import ShardedTensor


class SplitPlacement(Placement):
    """A model whose named parameters lie in pieces; every object stays the user's."""

    def __init__(self, model: nn.Module, splits: Mapping[str, Split], devices: Sequence[torch.device]) -> None:
        super().__init__(model, (), {}, devices)
        self._splits = splits
        self._before = WeightsBefore(model)

    def place(self) -> None:
        """Deal the parameters out, and bring the rest to the lead card.

        Raises:
            torch.OutOfMemoryError: if a card has no room; call `undo` then.
            ModelError: if a parameter is held in a way that cannot be kept: a graph, a weak reference.
        """
        shard_parameters(self.model, self._splits, self.devices)
        self.apply()

    def follow_optimizers(self) -> None:
        """Optimizers find the state of whole parameters where these are; sharded ones see to theirs."""
        whole = [parameter for parameter in self.model.parameters() if not isinstance(parameter, ShardedParameter)]
        optimizer_state.follow(Placement(nn.ParameterList(whole), (), {}, self.devices))

    def undo(self) -> None:
        """Every parameter whole, and where it was."""
        unshard_parameters(self.model)
        self._before.restore()

    def weight_nbytes(self) -> list[int]:
        """Bytes of parameters and buffers on each card now; what has not come to its card is not counted."""
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return self._by_card(list(tensors.values()))

    def gradient_nbytes(self) -> list[int]:
        """Bytes of gradients on each card now."""
        return self._by_card(p.grad for p in self.model.parameters() if p.grad is not None)

    def _by_card(self, tensors: Iterable[Tensor]) -> list[int]:
        totals = [0] * len(self.devices)
        for tensor in tensors:
            for card, part in enumerate(tensor.pieces if isinstance(tensor, ShardedTensor) else (tensor,)):
                totals[card] += part.nbytes if part.device == self.devices[card] else 0
        return totals
