"""An exchange over links that take their time: cards work while copies are on their way, and nobody reads too early.

lead    x --- fork ---.----- work ------.------------- join --> sum
             [copy to 1 ..]             .  [copy to 0 ..]
card 1                     `-- work ----'
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor
from transfer.collectives.slow_links import CARDS
from virtual_cards.held_streams import held

from poolrt._C import host_driver
from poolrt.errors import TransferError
from poolrt.transfer import routes
from poolrt.transfer.collectives.exchange import Exchange
from poolrt.transfer.move import Arrival
from poolrt.transfer.streams import side_stream
from poolrt.virtual_cards.links import carried, set_fault

NUMEL = 20_000
"""of float32: 8 ms over the slowest link"""
LARGEST = 2**20
"""of whole numbers, so that sums of a few are exact in any order"""


RANDOM = torch.Generator().manual_seed(1)


def numbers(device: torch.device | str = "cpu") -> Tensor:
    """Others each time, in each test: memory that is used again must not hold the right ones by chance."""
    return torch.randint(1, LARGEST, (NUMEL,), generator=RANDOM).float().to(device)


def out(source: torch.device, target: torch.device) -> torch.Stream:
    """The stream in which copies from one card to the other are made."""
    return side_stream(source, f"out, to {target}")


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def step(devices: list[torch.device], x: Tensor, weights: list[Tensor], way: str | None = None) -> Tensor:
    """Each card's work is to multiply by a weight of its own."""
    with Exchange(devices, way=way) as exchange:
        copies = exchange.fork(x)
        parts = []
        for card, weight in enumerate(weights):
            exchange.land(card)
            parts.append(exchange.leave(card, copies[card] * weight))
        return exchange.join(parts)


# ---- values


@pytest.mark.parametrize("way", [None, "one shot", "two shots", "ring"])
@pytest.mark.parametrize("count", [2, 3])
def test_forward_and_backward_over_links_of_unequal_speed(cards, count, way):
    devices = cards[:count]
    for _ in range(3):
        values, gradient = numbers(), torch.randint(1, 8, (NUMEL,)).float()
        x = values.to(devices[0]).requires_grad_()
        weights = [torch.full((), card + 1.0, device=d, requires_grad=True) for card, d in enumerate(devices)]
        total = step(devices, x, weights, way)
        total.backward(gradient.to(devices[0]))
        factor = sum(range(1, count + 1))
        assert torch.equal(total.detach().cpu(), values * factor)
        assert torch.equal(x.grad.cpu(), gradient * factor)
        dots = {weight.grad.item() for weight in weights}
        assert max(dots) == pytest.approx(min(dots), rel=1e-6)
        assert min(dots) == pytest.approx((values.double() * gradient).sum().item(), rel=1e-4)


@pytest.mark.parametrize("way", [None, "two shots"])
def test_in_streams_of_the_callers_own(cards, way):
    """Autograd then has nodes in those streams, and syncs them by its own rules."""
    values, gradient = numbers(), numbers()
    x = values.to(cards[0]).requires_grad_()
    weights = [torch.full((), 2.0, device=device, requires_grad=True) for device in cards]
    streams = [torch.Stream(device=device) for device in cards]
    sent = gradient.to(cards[0])
    with streams[0], streams[1], streams[2]:
        total = step(cards, x, weights, way)
        total.backward(sent)
    for stream in streams:
        stream.synchronize()
    assert torch.equal(total.detach().cpu(), values * 6)
    assert torch.equal(x.grad.cpu(), gradient * 6)


def test_parts_are_dealt_and_gathered(cards):
    x = numbers(cards[0]).requires_grad_()
    with Exchange(cards) as exchange:
        dealt = exchange.deal([x + card for card in range(CARDS)])
        exchange.land_all()
        gathered = exchange.gather([part * 2 for part in dealt])
        total = torch.cat(gathered)
    total.sum().backward()
    expected = x.detach().cpu()
    assert [part.device for part in dealt] == cards
    assert torch.equal(total.detach().cpu(), torch.cat([(expected + card) * 2 for card in range(CARDS)]))
    assert torch.equal(x.grad.cpu(), torch.full((NUMEL,), 2.0 * CARDS))


def test_gradients_that_are_given_back_are_there(cards):
    gradients = [numbers() for _ in cards]
    with Exchange(cards) as exchange:
        back = exchange.give_back([gradient.to(cards[0]) for gradient in gradients])
    assert all(torch.equal(tensor.cpu(), expected) for tensor, expected in zip(back, gradients, strict=True))


def test_anomaly_mode_finds_no_numbers_that_are_not_there_yet(cards):
    nothing = [torch.full((NUMEL,), float("nan"), device=device) for device in cards]
    del nothing  # memory that copies will get
    x = numbers(cards[0]).requires_grad_()
    weights = [torch.ones((), device=device, requires_grad=True) for device in cards]
    with torch.autograd.detect_anomaly(check_nan=True):
        step(cards, x, weights).sum().backward()
    assert torch.equal(x.grad.cpu(), torch.full((NUMEL,), 3.0))


@pytest.mark.parametrize("link", [(0, 1), (1, 0)], ids=["to the card", "from the card"])
@pytest.mark.parametrize("after", [0, 1, 2], ids=["forward", "backward", "next step"])
def test_a_link_that_dies_changes_no_bit(cards, link, after):
    values = numbers()
    set_fault(*link, "dies", after_copies=after)
    for _ in range(2):
        x = values.to(cards[0]).requires_grad_()
        weights = [torch.full((), 2.0, device=device, requires_grad=True) for device in cards]
        total = step(cards, x, weights)
        total.backward(values.to(cards[0]))
        assert torch.equal(total.detach().cpu(), values * 6)
        assert torch.equal(x.grad.cpu(), values * 6)
    assert routes.current().is_lost(cards[link[0]], cards[link[1]])


def test_a_link_that_dies_under_a_copy_that_nothing_comes_back_for(cards):
    x = numbers(cards[0])
    set_fault(0, 1, "dies")
    with Exchange(cards) as exchange:
        copies = exchange.fork(x)
        exchange.land_all()
    assert all(torch.equal(copy.cpu(), x.cpu()) for copy in copies)


# ---- who works while copies are on their way


def test_the_lead_card_works_before_any_copy_has_begun(cards):
    x = numbers(cards[0])
    with Exchange(cards[:2]) as exchange:
        with held(out(cards[0], cards[1])):
            copies = exchange.fork(x)
            exchange.land(0)
            mine = (copies[0] * 2).cpu()
            assert carried(0, 1) == (0, 0)
            assert not torch.equal(copies[1].cpu(), x.cpu()), "nobody has sent it, so this is what a missing wait reads"
        exchange.land(1)
        assert torch.equal(copies[1].cpu(), x.cpu())
    assert torch.equal(mine, x.cpu() * 2)


def test_a_card_waits_for_its_own_copies_alone(cards):
    x = numbers(cards[0])
    with Exchange(cards) as exchange:
        with held(out(cards[0], cards[1])):
            copies = exchange.fork(x)
            exchange.land(2)
            assert torch.equal(copies[2].cpu(), x.cpu())
            assert carried(0, 1) == (0, 0)
        exchange.land(1)


def test_a_card_sends_what_it_has_made_while_the_others_work(cards):
    x = numbers(cards[0])
    with Exchange(cards) as exchange:
        copies = exchange.fork(x)
        exchange.land_all()
        parts = [copies[0], exchange.leave(1, copies[1] + 1)]
        assert becomes_true(lambda: carried(1, 0)[0] == 1), "card 2 has not begun"
        parts.append(exchange.leave(2, copies[2] + 2))
        total = exchange.join(parts)
    assert torch.equal(total.cpu(), x.cpu() * 3 + 3)


def test_in_backward_the_lead_card_works_before_any_gradient_has_left(cards):
    x = numbers(cards[0]).requires_grad_()
    worked = threading.Event()
    with Exchange(cards[:2]) as exchange:
        copies = exchange.fork(x)
        exchange.land_all()
        mine = copies[0] * 2
        mine.register_hook(lambda gradient: worked.set())
        total = exchange.join([mine * 3, copies[1] * 2])
    before = carried(0, 1)
    thread = threading.Thread(target=lambda: total.backward(torch.ones_like(x)))
    with held(out(cards[0], cards[1])):
        thread.start()
        assert worked.wait(20), "its hook was not reached while the gradient was on its way to the other card"
        assert carried(0, 1) == before
    thread.join()
    assert torch.equal(x.grad.cpu(), torch.full((NUMEL,), 8.0))


def test_in_backward_a_card_sends_its_gradient_while_the_lead_card_works(cards):
    x = numbers(cards[0]).requires_grad_()
    seen = []
    with Exchange(cards[:2]) as exchange:
        copies = exchange.fork(x)
        exchange.land_all()
        mine = copies[0] * 2
        total = exchange.join([mine, copies[1] * 3])
    before = carried(1, 0)[0]
    mine.register_hook(lambda gradient: seen.append(becomes_true(lambda: carried(1, 0)[0] == before + 1)))
    total.backward(torch.ones_like(x))
    assert seen == [True]
    assert torch.equal(x.grad.cpu(), torch.full((NUMEL,), 5.0))


# ---- every wait is needed


WAITS = ["card 1's copy", "its part, on the lead card", "its gradient", "the gradient of its copy, on the lead card"]


@pytest.mark.parametrize("left_out", [None, *range(len(WAITS))], ids=["none", *WAITS])
def test_without_one_of_its_waits_a_step_is_wrong(cards, monkeypatch, left_out):
    """Copies begin when somebody waits for them: the worst that links can do."""
    wait, driver = Arrival.wait, host_driver()
    links = [out(cards[0], cards[1]).stream_id, out(cards[1], cards[0]).stream_id]

    def careless(arrival: Arrival) -> Tensor:
        if arrival.arrived is None:
            return arrival.tensor
        number, too_early = next(numbered), arrival.tensor.clone()
        if number == left_out and number in (0, 2):  # their readers have the tensor already
            return arrival.tensor
        for link in links:
            driver.stream_pass(link)
        tensor = wait(arrival)
        for link in links:
            driver.stream_hold(link)
        return too_early if number == left_out else tensor

    for _ in range(3):
        numbered = count()
        values, gradient = numbers(), numbers()
        x, given = values.to(cards[0]).requires_grad_(), gradient.to(cards[0])
        weights = [torch.full((), 2.0 + card, device=cards[card], requires_grad=True) for card in range(2)]
        monkeypatch.setattr(Arrival, "wait", careless)
        with held(out(cards[0], cards[1]), out(cards[1], cards[0])):
            total = step(cards[:2], x, weights)
            total.backward(given)
            found = [total.detach().cpu(), x.grad.cpu(), weights[1].grad.cpu()]
        monkeypatch.undo()
        assert next(numbered) == len(WAITS), "so many waits there are"
        for device in cards:
            torch.vcard.synchronize(device)
        right = [torch.equal(tensor, expected * 5) for tensor, expected in zip(found, (values, gradient), strict=False)]
        dot = pytest.approx((values.double() * gradient).sum().item(), rel=1e-5)
        assert (all(right) and found[2].item() == dot) is (left_out is None)
    torch.vcard.reset_hazards()


@pytest.mark.parametrize("waits", [True, False])
def test_what_was_sent_may_be_written_to_when_the_exchange_is_over(cards, monkeypatch, waits):
    if not waits:
        monkeypatch.setattr(Exchange, "_let_lead_write", lambda exchange: None)
    x = numbers(cards[0])
    expected = x.cpu()
    streams = [torch.Stream(device=card) for card in cards[:2]]
    with streams[0], streams[1]:
        with Exchange(cards[:2]) as exchange:
            copies = exchange.fork(x)
            exchange.land_all()
        x.zero_()
    for stream in streams:
        stream.synchronize()
    assert torch.equal(copies[1].cpu(), expected) is waits


@pytest.mark.parametrize("returned", [True, False], ids=["in the sum", "in nothing"])
def test_what_came_back_tells_the_lead_card_that_it_may_write(cards, returned):
    x = numbers(cards[0])
    expected = x.cpu()
    streams = [torch.Stream(device=card) for card in cards[:2]]
    with streams[0], streams[1]:
        with Exchange(cards[:2]) as exchange:
            copies = exchange.fork(x)
            exchange.land_all()
            parts = [copies[0] * 1, exchange.leave(1, copies[1] * 1)] if returned else []
            total = exchange.join(parts) if returned else None
        x.zero_()
    for stream in streams:
        stream.synchronize()
    assert torch.equal(copies[1].cpu(), expected)
    assert total is None or torch.equal(total.cpu(), expected * 2)


def test_a_card_may_write_to_the_gradient_that_it_has_sent(cards):
    """The hook of x comes after the fork; what it overwrites may still be on its way, if nobody has waited."""
    values = numbers()
    streams = [torch.Stream(device=card) for card in cards[:2]]
    x, sent = values.to(cards[0]).requires_grad_(), []

    def overwrite(gradient: Tensor) -> None:
        with streams[1]:
            sent[0].zero_()

    with streams[0], streams[1]:
        with Exchange(cards[:2]) as exchange:
            copies = exchange.fork(x)
            exchange.land_all()
            copies[1].register_hook(sent.append)
            x.register_hook(overwrite)
            total = exchange.join([copies[0] * 1, copies[1] * 1])
        total.backward(values.to(cards[0]))
    for stream in streams:
        stream.synchronize()
    assert torch.equal(x.grad.cpu(), values * 2)


# ---- what goes wrong


def test_an_input_that_is_changed_on_its_way_is_refused(cards):
    x = numbers(cards[0])
    with Exchange(cards[:2]) as exchange:
        copies = exchange.fork(x)
        exchange.land(0)
        copies[0].add_(1)
        with pytest.raises(TransferError, match="work on a clone"):
            exchange.land(1)


def test_an_error_leaves_nothing_under_way(cards):
    used = [torch.vcard.memory_allocated(card) for card in range(CARDS)]
    x = numbers(cards[0])

    def fails(x: Tensor) -> None:
        with Exchange(cards) as exchange:
            copies = exchange.fork(x)
            exchange.land(1)
            exchange.leave(1, copies[1] + 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails(x)
    assert carried(0, 1)[0] == carried(0, 2)[0] == carried(1, 0)[0] == 1
    del x
    assert [torch.vcard.memory_allocated(card) for card in range(CARDS)] == used
