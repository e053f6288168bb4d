"""What a plan keeps elsewhere than on its card: the pool behind it, and who allocates from it.

    card 0   weights gradients activations | state of card 0 ..........
    card 1   weights gradients activations | ...... and more of it | state of card 1
    host                                   | the rest of both

A spilled tensor is still a tensor of its card, which reaches the pages wherever they are: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from poolrt.memory.pool import Pool
from poolrt.planning.plan import Plan
from poolrt.runtime.layers import Layer
from poolrt.topology.topology import Topology


class Spill:
    """The pool of one plan."""

    def __init__(self, plan: Plan, topology: Topology) -> None:
        self.pool = Pool(topology, plan.host_spill_bytes, limits=[card.pool_limit_bytes for card in plan.cards])
        self._plan = plan
        self.homes = [card.index for card in plan.cards if card.spills_optimizer]
        """cards whose optimizer state is the pool's"""

    def take_weights(self, layers: Sequence[Layer]) -> None:
        """Bring the weights of the plan's spilled layers into the pool; the parameters stay the same objects.

        Raises:
            torch.OutOfMemoryError: if there is no room for them, which is not as planned.
        """
        modules = {layer.name: layer.module for layer in layers}
        for card in self._plan.cards:
            for name in card.spilled_layers:
                self._take(modules[name], card.index)

    def _take(self, module: nn.Module, home: int) -> None:
        for parameter in module.parameters():
            if parameter.device == self.pool.devices[home]:  # a tied one may live with another layer
                parameter.data = self.pool.like(parameter.data, home=home)

    @contextmanager
    def for_optimizer(self) -> Iterator[None]:
        """Meanwhile this thread's allocations on the cards whose optimizer state spills come from the pool."""
        with ExitStack() as stack:
            for home in self.homes:
                stack.enter_context(self.pool.use(home))
            yield

    def holds_state_of(self, device: torch.device) -> bool:
        """Whether the optimizer state of the card with this device is the pool's."""
        return any(self.pool.devices[home] == device for home in self.homes)
