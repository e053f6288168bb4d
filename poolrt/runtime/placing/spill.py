"""What a plan keeps elsewhere than on its card: the pool behind it, and who allocates from it.

    card 0   weights gradients activations | state of card 0 ..........
    card 1   weights gradients activations | ...... and more of it | state of card 1
    host                                   | the rest of both

A spilled tensor is still a tensor of its card, which reaches the pages wherever they are: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from poolrt.memory.pool import Pool
from poolrt.planning.plan import Plan
from poolrt.topology.topology import Topology
from poolrt.transfer.move import move


class Spill:
    """The pool of one plan."""

    def __init__(self, plan: Plan, topology: Topology) -> None:
        self.pool = Pool(topology, plan.host_spill_bytes, limits=[card.pool_limit_bytes for card in plan.cards])
        spilled = [(card.index, name) for card in plan.cards for name in card.spilled_layers]
        self._ranks = {place: rank for rank, place in enumerate(spilled)}
        self.homes = [card.index for card in plan.cards if card.spills_optimizer]
        """cards whose optimizer state is the pool's"""

    def rank(self, layer: str, card: int) -> int | None:
        """When to ask for what `card` has of this layer, as the first ones lie nearest; None if that stays on it."""
        return self._ranks.get((card, layer))

    def allocating(self, layer: str, card: int) -> AbstractContextManager[None]:
        """Meanwhile this thread's allocations on `card` come from the pool if what it has of this layer is spilled."""
        return nullcontext() if self.rank(layer, card) is None else self.pool.use(card)

    def take(self, parameter: nn.Parameter, home: int) -> None:
        """Bring `parameter`, its gradient apart, into the pool. It stays the same object.

        Raises:
            torch.OutOfMemoryError: if there is no room for it, which is not as planned.
        """
        values, gradient = parameter.data.cpu(), parameter.grad
        parameter.grad = None
        parameter.data = values  # what it took until now, on a card or in another pool, is free from here on
        parameter.data = self.pool.like(values, home=home)
        parameter.grad = None if gradient is None else move(gradient, parameter.device)

    def copy(self, tensor: Tensor, home: int) -> Tensor:
        """A buffer's values in the pool.

        Raises:
            torch.OutOfMemoryError: as `take`.
        """
        return self.pool.like(tensor, home=home)

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
