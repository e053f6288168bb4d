"""All lanes at once: they end together, whatever happens to one of them."""

from __future__ import annotations

import threading

import pytest
import torch

from poolrt.runtime.lanes.lane import Lane
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.lanes.run_lanes import run_lanes

HOST = (torch.device("cpu"), torch.device("cpu"))
"""two cards that share a device"""


def lanes(count: int) -> list[Lane]:
    return [Lane(index, HOST, None) for index in range(count)]


def pass_both_cards(lane: Lane) -> None:
    for card in (0, 1):
        lane.go(card)


def test_admissions_follow_the_order() -> None:
    order, _ = CardOrders((0, 1)).of(4)
    admissions = run_lanes(lanes(4), order, pass_both_cards, threads_per_lane=1)
    for card in (0, 1):
        assert [a.ticket for a in admissions if a.card == card] == list(order[card])


def test_every_lane_has_a_thread_of_its_own_with_its_share_of_cores() -> None:
    seen: list[tuple[str, int]] = []
    together = threading.Barrier(3)

    def body(lane: Lane) -> None:
        together.wait(timeout=30)
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    own = torch.get_num_threads()
    run_lanes(lanes(3), {}, body, threads_per_lane=1)
    assert sorted(seen) == [(f"lane {index}", 1) for index in range(3)]
    assert torch.get_num_threads() == own


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_the_first_failure_comes_out_as_itself_and_the_others_stop(failing: int) -> None:
    failure = KeyError("mine")
    reached: list[int] = []

    def body(lane: Lane) -> None:
        lane.go(0)
        if lane.index == failing:
            raise failure
        lane.go(1)
        reached.append(lane.index)

    before = set(threading.enumerate())
    with pytest.raises(KeyError) as caught:
        run_lanes(lanes(4), CardOrders((0, 1)).of(4)[0], body, threads_per_lane=1)
    assert caught.value is failure
    assert set(threading.enumerate()) == before
    assert set(reached) <= set(range(failing))


def test_a_lane_that_leaves_early_holds_nobody_up() -> None:
    def body(lane: Lane) -> None:
        lane.go(0)
        if lane.index != 1:
            lane.go(1)

    admissions = run_lanes(lanes(3), CardOrders((0, 1)).of(3)[0], body, threads_per_lane=1)
    assert [a.ticket.micro_batch for a in admissions if a.card == 1] == [0, 2]
