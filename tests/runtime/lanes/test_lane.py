"""One micro-batch's walk, forward over the cards and back again.

forward    [card 0: a] -> hop -> [card 1: b] -> hop -> [card 0: c]
backward   [card 0: a] <- hop <- [card 1: b] <- hop <- [card 0: c]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from poolrt.runtime.lanes.lane import Hop, Lane
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.lanes.random_state import CardSeeds
from poolrt.runtime.lanes.turnstile import Ticket, Turnstile

Devices = tuple[torch.device, torch.device]


def in_lanes(lanes: list[Lane], turnstile: Turnstile, body: Callable[[Lane], None]) -> None:
    """Run `body` for each lane in a thread, backward in that thread too."""
    failures: list[BaseException] = []

    def work(lane: Lane) -> None:
        try:
            lane.begin(turnstile)
            with torch.autograd.set_multithreading_enabled(False):
                lane.work(body)
        except BaseException as error:
            failures.append(error)
            turnstile.abort()

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def alone(devices: Devices, body: Callable[[Lane], None], seeds: CardSeeds | None = None) -> Lane:
    """One lane, in this thread, with all cards to itself."""
    lane = Lane(0, devices, seeds)
    lane.begin(Turnstile({}, 1))
    with torch.autograd.set_multithreading_enabled(False):
        lane.work(body)
    return lane


def cards_of(turnstile: Turnstile) -> list[tuple[int, Ticket]]:
    return [(admission.card, admission.ticket) for admission in turnstile.admissions]


def test_values_arrive_on_the_card(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        first = lane.enter(0, {"x": torch.ones(2), "n": 3})
        assert first["x"].device == lane.device == devices[0]
        assert first["n"] == 3
        second = lane.enter(1, first)
        assert second["x"].device == lane.device == devices[1]

    assert alone(devices, body).path == [0, 1]


def test_a_lane_holds_one_card_at_a_time(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        assert lane.card is None
        assert lane.device is None
        for card in (0, 1, 1, 0):
            lane.enter(card, torch.ones(1))
            assert lane.card == card
        lane.leave()
        assert lane.card is None

    turnstile = Turnstile({}, 1)
    lane = Lane(0, devices, None)
    lane.begin(turnstile)
    lane.work(body)
    assert lane.path == [0, 1, 0]
    assert cards_of(turnstile) == [(0, Ticket(0, 0)), (1, Ticket(0, 0)), (0, Ticket(1, 0))]
    assert all(admission.end_s >= admission.start_s > 0 for admission in turnstile.admissions)


def test_the_threads_current_card_is_the_lanes(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        for card in (1, 0):
            lane.enter(card, torch.ones(1))
            assert torch.vcard.current_device() == card

    alone(devices, body)


def test_backward_passes_the_same_gates_the_other_way(devices: Devices) -> None:
    orders = CardOrders((0, 1, 0))
    lanes = [Lane(index, devices, None) for index in range(3)]
    forward, backward = (Turnstile(order, 3) for order in orders.of(3))
    outputs: dict[int, Tensor] = {}
    leaves = {lane.index: torch.full((2,), 1.0 + lane.index, device=devices[0], requires_grad=True) for lane in lanes}

    def run(lane: Lane) -> None:
        x = lane.enter(0, leaves[lane.index]) * 2
        y = lane.enter(1, x) * 3
        outputs[lane.index] = lane.enter(0, y).sum() * 5

    def back(lane: Lane) -> None:
        lane.go(lane.path[-1])
        outputs[lane.index].backward()

    in_lanes(lanes, forward, run)
    in_lanes(lanes, backward, back)
    for turnstile, order in zip((forward, backward), orders.of(3), strict=True):
        for card in (0, 1):
            assert [ticket for at, ticket in cards_of(turnstile) if at == card] == list(order[card])
    assert all(leaf.grad.tolist() == [30.0, 30.0] for leaf in leaves.values())


class Noting(torch.autograd.Function):
    """Identity that notes the card its lane holds in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lane: Lane, held: list[int | None]) -> Tensor:
        ctx.lane, ctx.held = lane, held
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.held.append(ctx.lane.card)
        return gradient, None, None


@pytest.mark.parametrize("shared", [False, True], ids=["two devices", "one device"])
def test_in_backward_a_lane_holds_the_card_of_the_work(shared: bool, devices: Devices) -> None:
    """Also where two logical cards share one device, and nothing is copied between them."""
    if shared:
        devices = (torch.device("cpu"), torch.device("cpu"))
    held: list[int | None] = []

    def body(lane: Lane) -> None:
        leaf = torch.ones(2, device=devices[0], requires_grad=True)
        x = Noting.apply(lane.enter(0, leaf), lane, held)
        y = Noting.apply(lane.enter(1, x), lane, held)
        Noting.apply(lane.enter(0, y), lane, held).sum().backward()

    alone(devices, body)
    assert held == [0, 1, 0]


def test_what_crossed_before_crosses_no_second_time(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        x = lane.enter(0, torch.ones(4, device=devices[0], requires_grad=True)) * 2
        first = lane.enter(1, x)
        lane.enter(0, x)
        again = lane.enter(1, x)
        assert again is first
        assert lane.crossings.copied_tensors == 1

    alone(devices, body)


def test_a_tensor_without_gradient_crosses_without_a_hop(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        mask = lane.enter(0, torch.ones(2, device=devices[0]))
        x = lane.enter(0, torch.ones(2, device=devices[0], requires_grad=True)) * 1
        moved_mask, moved_x = lane.enter(1, (mask, x))
        assert not moved_mask.requires_grad
        assert isinstance(moved_x.grad_fn, Hop._backward_cls)

    alone(devices, body)


def test_under_no_grad_nothing_hops(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        x = lane.enter(0, torch.ones(2, device=devices[0], requires_grad=True))
        with torch.no_grad():
            assert not lane.enter(1, x).requires_grad

    alone(devices, body)


def test_a_gradient_that_nobody_wants_is_not_made_up(devices: Devices) -> None:
    """Two tensors share a hop; only one has a loss."""

    def body(lane: Lane) -> None:
        a, b = (torch.ones(2, device=devices[0], requires_grad=True) for _ in range(2))
        moved_a, _ = lane.enter(1, lane.enter(0, (a * 1, b * 1)))
        moved_a.sum().backward()
        assert a.grad.tolist() == [1.0, 1.0]
        assert b.grad is None

    alone(devices, body)


def test_what_crossed_may_be_changed_in_place(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        leaf = torch.ones(2, device=devices[0], requires_grad=True)
        moved = lane.enter(1, lane.enter(0, leaf) * 2)
        moved.add_(1).mul_(3)
        moved.sum().backward()
        assert leaf.grad.tolist() == [6.0, 6.0]

    alone(devices, body)


def test_an_out_of_memory_error_is_marked_with_its_card(devices: Devices) -> None:
    def body(lane: Lane) -> None:
        lane.enter(1, torch.ones(1))
        torch.empty(1 << 40, dtype=torch.uint8, device=lane.device)

    with pytest.raises(torch.OutOfMemoryError) as caught:
        alone(devices, body)
    assert caught.value.card == 1


def test_every_stay_is_seeded(devices: Devices) -> None:
    def draws() -> list[float]:
        torch.manual_seed(4)
        seen: list[float] = []

        def body(lane: Lane) -> None:
            for card in (0, 1, 0):
                lane.enter(card, torch.ones(1))
                seen.append(torch.rand((), device=lane.device).item())

        seeds = CardSeeds(devices)
        with seeds.restored():
            alone(devices, body, seeds)
        return seen

    first = draws()
    assert len(set(first)) == 3
    assert draws() == first
