"""The order in which each card admits lanes: the plan's schedule in the turnstile's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poolrt.planning.schedule import Action, gpipe_order
from poolrt.runtime.lanes.turnstile import Ticket

Orders = Mapping[int, Sequence[Ticket]]
"""card index to the tickets it admits, in order; one phase"""


class CardOrders:
    """The orders that follow from the cards a micro-batch visits, `path`."""

    def __init__(self, path: Sequence[int]) -> None:
        self._path = tuple(path)
        self._known: dict[int, tuple[Orders, Orders]] = {}

    def of(self, micro_batches: int) -> tuple[Orders, Orders]:
        """Forward and backward."""
        if micro_batches not in self._known:
            forward, backward = (gpipe_order(path, micro_batches) for path in (self._path, self._path[::-1]))
            self._known[micro_batches] = _tickets(forward), _tickets(backward)
        return self._known[micro_batches]


def _tickets(orders: Mapping[int, Sequence[Action]]) -> Orders:
    return {card: [Ticket(action.visit, action.micro_batch) for action in actions] for card, actions in orders.items()}
