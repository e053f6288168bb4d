"""The gate before each card: order is the schedule's, whatever the timing; nothing ever hangs.

card 0:  F0 F1 F2 F3
card 1:     F0 F1 F2 F3
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.schedule import gpipe_order
from poolrt.runtime.lanes.turnstile import Aborted, Admission, Ticket, Turnstile

WATCHDOG_S = 20.0

Order = dict[int, list[Ticket]]


def gpipe(path: Sequence[int], lanes: int) -> Order:
    return {
        card: [Ticket(action.visit, action.micro_batch) for action in actions]
        for card, actions in gpipe_order(path, lanes).items()
    }


def walk(turnstile: Turnstile, micro_batch: int, path: Sequence[int], pause: Callable[[], None]) -> None:
    """What a lane does with a path that is known beforehand."""
    visits: dict[int, int] = defaultdict(int)
    for card in path:
        admission = turnstile.acquire(card, Ticket(visits[card], micro_batch))
        visits[card] += 1
        pause()
        turnstile.release(admission)
        pause()
    turnstile.finish(micro_batch)


def run(order: Order, paths: Sequence[Sequence[int]], seed: int = 0) -> dict[int, list[Ticket]]:
    """Walk every lane in a thread of its own, with random pauses; who was admitted to each card, in order."""
    turnstile = Turnstile(order, len(paths))
    dice = random.Random(seed)

    def pause() -> None:
        time.sleep(dice.choice((0.0, 0.0, 0.0005)))

    threads = [
        threading.Thread(target=walk, args=(turnstile, index, path, pause), daemon=True)
        for index, path in enumerate(paths)
    ]
    dice.shuffle(threads)
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WATCHDOG_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = any(thread.is_alive() for thread in threads)
    turnstile.abort()
    assert not stuck, f"lanes with paths {paths} hang at {order}"
    return by_card(turnstile.admissions)


def by_card(admissions: Sequence[Admission]) -> dict[int, list[Ticket]]:
    cards: dict[int, list[Ticket]] = defaultdict(list)
    for admission in admissions:
        cards[admission.card].append(admission.ticket)
    return dict(cards)


@pytest.mark.parametrize("path", [(0, 1), (0, 1, 2), (0, 1, 0, 1), (0,)])
@pytest.mark.parametrize("seed", range(3))
def test_a_card_admits_in_the_order_of_the_schedule(path: tuple[int, ...], seed: int) -> None:
    order = gpipe(path, lanes=4)
    assert run(order, [path] * 4, seed) == order


def test_any_order_that_can_be_kept_is_kept() -> None:
    order = {0: [Ticket(0, 2), Ticket(0, 0), Ticket(0, 1)], 1: [Ticket(0, 2), Ticket(0, 0), Ticket(0, 1)]}
    assert run(order, [(0, 1)] * 3) == order


def test_one_lane_at_a_time_on_a_card() -> None:
    turnstile = Turnstile(gpipe((0, 1), 6), 6)
    inside = {0: 0, 1: 0}
    most = dict(inside)
    cards = threading.Lock()

    def lane(micro_batch: int) -> None:
        for card in (0, 1):
            admission = turnstile.acquire(card, Ticket(0, micro_batch))
            with cards:
                inside[card] += 1
                most[card] = max(most[card], inside[card])
            time.sleep(0.0005)
            with cards:
                inside[card] -= 1
            turnstile.release(admission)
        turnstile.finish(micro_batch)

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert most == {0: 1, 1: 1}


def test_cards_work_at_the_same_time() -> None:
    """Lane 0 may be on card 1 while lane 1 is on card 0: each waits for the other there."""
    turnstile = Turnstile(gpipe((0, 1), 2), 2)
    together = threading.Barrier(2)
    met: list[int] = []

    def lane(micro_batch: int) -> None:
        for card in (0, 1):
            admission = turnstile.acquire(card, Ticket(0, micro_batch))
            if card != micro_batch:
                met.append(together.wait(timeout=WATCHDOG_S))
            turnstile.release(admission)
        turnstile.finish(micro_batch)

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert sorted(met) == [0, 1]


def test_places_of_a_lane_that_ended_early_are_skipped() -> None:
    order = gpipe((0, 1, 2), lanes=3)
    admitted = run(order, [(0, 1, 2), (0,), (0, 1, 2)])
    assert admitted == {
        0: [Ticket(0, 0), Ticket(0, 1), Ticket(0, 2)],
        1: [Ticket(0, 0), Ticket(0, 2)],
        2: [Ticket(0, 0), Ticket(0, 2)],
    }


def test_a_visit_that_was_not_planned_is_admitted_once_nothing_else_can_move() -> None:
    order = gpipe((0, 1), lanes=2)
    admitted = run(order, [(0, 1, 0), (0, 1)])
    assert admitted[1] == order[1]
    assert admitted[0] == [*order[0], Ticket(1, 0)]


def test_a_card_that_no_plan_names() -> None:
    assert run(gpipe((0,), 2), [(0, 7), (0, 7)])[7] == [Ticket(0, 0), Ticket(0, 1)]


def test_without_any_order_the_smallest_ticket_goes_first() -> None:
    assert run({}, [(0,), (0,), (0,)])[0] == [Ticket(0, 0), Ticket(0, 1), Ticket(0, 2)]


paths = st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=4)


@settings(max_examples=60)
@given(planned=st.lists(st.integers(0, 2), max_size=4), paths=paths)
def test_paths_that_differ_from_the_plan_neither_hang_nor_depend_on_timing(
    planned: list[int], paths: list[list[int]]
) -> None:
    order = gpipe(planned, len(paths))
    first = run(order, paths, seed=1)
    assert run(order, paths, seed=2) == first
    visits: dict[int, list[Ticket]] = defaultdict(list)
    for micro_batch, path in enumerate(paths):
        for position, card in enumerate(path):
            visits[card].append(Ticket(path[:position].count(card), micro_batch))
    assert {card: sorted(tickets) for card, tickets in first.items()} == {
        card: sorted(tickets) for card, tickets in visits.items()
    }


def test_abort_wakes_everyone_who_waits() -> None:
    turnstile = Turnstile(gpipe((0,), 3), 3)
    holder = turnstile.acquire(0, Ticket(0, 0))
    woken: list[int] = []

    def lane(micro_batch: int) -> None:
        with pytest.raises(Aborted):
            turnstile.acquire(0, Ticket(0, micro_batch))
        woken.append(micro_batch)

    threads = [threading.Thread(target=lane, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    turnstile.abort()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert sorted(woken) == [1, 2]
    turnstile.release(holder)
    with pytest.raises(Aborted):
        turnstile.acquire(0, Ticket(0, 0))


def test_an_ordinary_except_does_not_stop_an_abort() -> None:
    """A model's forward may catch Exception; it must not catch this."""
    assert not issubclass(Aborted, Exception)


def test_a_stay_is_recorded_with_its_times() -> None:
    turnstile = Turnstile(gpipe((0,), 1), 1)
    admission = turnstile.acquire(0, Ticket(0, 0))
    turnstile.release(admission)
    assert turnstile.admissions == [admission]
    assert (admission.card, admission.ticket) == (0, Ticket(0, 0))
    assert 0 < admission.start_s <= admission.end_s
