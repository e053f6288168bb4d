"""Tickets of a schedule.

path 0 1 0, two micro-batches      forward  card 0: (0,0) (0,1) (1,0) (1,1)   card 1: (0,0) (0,1)
"""

from __future__ import annotations

from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.lanes.turnstile import Ticket


def test_a_card_that_is_visited_twice_has_two_tickets_per_micro_batch() -> None:
    forward, backward = CardOrders((0, 1, 0)).of(2)
    assert list(forward[1]) == [Ticket(0, 0), Ticket(0, 1)]
    assert sorted(forward[0]) == [Ticket(0, 0), Ticket(0, 1), Ticket(1, 0), Ticket(1, 1)]
    assert sorted(backward[0]) == sorted(forward[0])


def test_backward_takes_the_path_the_other_way() -> None:
    orders = CardOrders((2, 0, 1))
    forward, backward = orders.of(3)
    assert set(forward) == set(backward) == {0, 1, 2}
    assert CardOrders((1, 0, 2)).of(3) == (backward, forward)


def test_an_order_is_computed_once() -> None:
    orders = CardOrders((0, 1))
    assert orders.of(4) is orders.of(4)
    assert orders.of(4) != orders.of(2)
