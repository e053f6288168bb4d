"""Copies that are started in one place and waited for in another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from poolrt._C import host_driver
from poolrt.errors import TransferError
from poolrt.transfer.copy import copy
from poolrt.transfer.many import SMALL_NBYTES, copy_many
from poolrt.transfer.move import move, start
from poolrt.transfer.routes import current
from poolrt.transfer.streams import mark, side_stream
from poolrt.virtual_cards.links import carried, clear_faults, clear_links, is_up, set_fault, set_link

Devices = tuple[torch.device, torch.device]
SLOW_BYTES_PER_S = 20e6
NUMEL = 100_000
"""of float32: 20 ms over a slow link"""


@pytest.fixture(autouse=True)
def slow_links(devices: Devices) -> Iterator[None]:
    torch.vcard.reset_hazards()
    for source, target in ((0, 1), (1, 0), (0, None), (None, 1)):
        set_link(source, target, bytes_per_s=SLOW_BYTES_PER_S)
    yield
    for device in devices:
        torch.vcard.synchronize(device)
    clear_links()
    clear_faults()
    assert torch.vcard.hazards() == []


def numbers(device: torch.device, numel: int = NUMEL) -> Tensor:
    return torch.arange(float(numel), device=device)


def value_of(tensor: Tensor) -> Tensor:
    clear_links()
    return tensor.cpu()


@contextmanager
def held(stream: torch.Stream) -> Iterator[None]:
    """What comes into this stream inside is begun when the block ends."""
    host_driver().stream_hold(stream.stream_id)
    try:
        yield
    finally:
        host_driver().stream_pass(stream.stream_id)


ROUTES = ["P2P", "HOST"]


def choose(route: str, devices: Devices) -> None:
    if route == "HOST":
        current().lose(*devices, "for the test")


@pytest.mark.parametrize("route", ROUTES)
def test_a_started_copy_arrives_when_it_is_waited_for(devices: Devices, route: str) -> None:
    choose(route, devices)
    values = torch.randn(NUMEL) + ROUTES.index(route)  # memory that is used again may hold those of the test before
    source = values.to(devices[0])
    way = f"out, to {devices[1]}" if route == "P2P" else f"down, to {devices[1]}"
    with held(side_stream(devices[0], way)):
        arrival = start(source, devices[1])
        assert not torch.equal(arrival.tensor.cpu(), values)  # nobody has to wait here
    assert arrival.wait() is arrival.tensor
    assert torch.equal(arrival.tensor.cpu(), values)
    assert arrival.wait() is arrival.tensor


@pytest.mark.parametrize("route", ROUTES)
def test_it_starts_when_its_values_are_there(devices: Devices, route: str) -> None:
    """The producer's stream is still writing the source."""
    choose(route, devices)
    set_link(None, 0, bytes_per_s=SLOW_BYTES_PER_S / 2)
    source, values = torch.zeros(NUMEL, device=devices[0]), numbers(torch.device("cpu"))
    with torch.Stream(device=devices[0]):
        source.copy_(values, non_blocking=True)
        arrival = start(source, devices[1])
    assert torch.equal(value_of(arrival.wait()), values)


@pytest.mark.parametrize("route", ROUTES)
def test_it_may_start_after_a_moment_in_the_past(devices: Devices, route: str) -> None:
    """What the source's card is given after that moment does not hold the copy up."""
    choose(route, devices)
    source = numbers(devices[0])
    given = mark(devices[0])
    stream = torch.Stream(device=devices[0])
    with held(stream), stream:
        arrival = start(source, devices[1], given)
        assert torch.equal(arrival.wait(), numbers(devices[1]))


@pytest.mark.parametrize("route", ROUTES)
def test_forms_that_are_no_plain_bytes_start_too(devices: Devices, route: str) -> None:
    choose(route, devices)
    matrix = numbers(devices[0], 3000).view(50, 60)
    for tensor in (matrix.t(), matrix[:, ::2], matrix[3], matrix.expand(2, 50, 60)):
        arrived = start(tensor, devices[1]).wait()
        assert torch.equal(arrived.cpu(), tensor.cpu())


@pytest.mark.parametrize("route", ROUTES)
def test_a_source_that_nobody_holds_any_more_still_arrives(devices: Devices, route: str) -> None:
    choose(route, devices)
    arrival = start(numbers(devices[0]) + 1, devices[1])
    assert torch.equal(value_of(arrival.wait()), numbers(torch.device("cpu")) + 1)


def test_copies_to_two_cards_do_not_wait_for_each_other() -> None:
    import poolrt

    devices = [torch.device(card.device) for card in poolrt.virtual(cards=3, memory="64MiB").cards]
    source = numbers(devices[0])
    for card in (1, 2):
        set_link(0, card, bytes_per_s=SLOW_BYTES_PER_S)
    with held(side_stream(devices[0], f"out, to {devices[1]}")):
        arrivals = [start(source, device) for device in devices[1:]]
        assert torch.equal(arrivals[1].wait(), numbers(devices[2]))  # though the other copy has not begun
    for arrival, device in reversed(list(zip(arrivals, devices[1:], strict=True))):
        assert torch.equal(arrival.wait(), numbers(device))


@pytest.mark.parametrize("dies", ["at once", "under way"])
def test_a_copy_over_a_link_that_died_is_made_again_through_the_host(devices: Devices, dies: str) -> None:
    source = numbers(devices[0])
    if dies == "at once":
        set_fault(0, 1, "dies")
    else:
        set_fault(0, 1, "dies", after_copies=1)
    arrivals = [start(source, devices[1]) for _ in range(3)]
    for arrival in arrivals:
        assert torch.equal(value_of(arrival.wait()), value_of(source))
    assert not is_up(0, 1)
    assert current().is_lost(*devices)
    assert torch.equal(move(source, devices[1]).cpu(), source.cpu())


@pytest.mark.parametrize("route", ROUTES)
def test_an_abandoned_copy_is_over_and_its_failure_is_told_to_nobody_else(devices: Devices, route: str) -> None:
    choose(route, devices)
    set_fault(0, 1 if route == "P2P" else None, "dies")
    arrival = start(numbers(devices[0]), devices[1])
    arrival.abandon()
    arrival.abandon()
    for device in devices:
        torch.vcard.synchronize(device)  # would raise what is left to be told
    clear_faults()
    current().forget("vcard")
    choose(route, devices)
    assert torch.equal(start(numbers(devices[0]), devices[1]).wait(), numbers(devices[1]))


def test_copies_of_several_threads_survive_the_death_of_their_link(devices: Devices) -> None:
    values = [torch.randn(NUMEL // 4) for _ in range(6)]
    sources = [value.to(devices[0]) for value in values]
    clear_links()
    set_link(0, 1, bytes_per_s=SLOW_BYTES_PER_S)
    set_fault(0, 1, "dies", after_copies=2)
    with ThreadPoolExecutor(len(sources)) as threads:
        found = list(threads.map(lambda source: start(source, devices[1]).wait(), sources))
    for value, copied in zip(values, found, strict=True):
        assert torch.equal(copied.cpu(), value)


def test_a_source_that_changed_cannot_be_sent_again(devices: Devices) -> None:
    source = numbers(devices[0])
    set_fault(0, 1, "dies")
    arrival = start(source, devices[1])
    source.add_(1)
    with pytest.raises(TransferError, match="repeat the step"):
        arrival.wait()


def test_with_no_way_left_the_error_is_told(devices: Devices) -> None:
    source = numbers(devices[0])
    set_fault(0, 1, "dies")
    set_fault(0, None, "dies")
    with pytest.raises(torch.AcceleratorError) as raised:
        start(source, devices[1]).wait()
    assert raised.value.error_code == 220
    with pytest.raises(torch.AcceleratorError):
        copy(source, torch.empty_like(source, device=devices[1]))


def test_gradients_find_their_way_around_a_dead_link(devices: Devices) -> None:
    leaf = numbers(devices[0]).requires_grad_()
    moved = move(leaf, devices[1])
    set_fault(1, 0, "dies")
    moved.backward(numbers(devices[1]))
    assert torch.equal(leaf.grad.cpu(), numbers(torch.device("cpu")))
    assert current().is_lost(devices[1], devices[0])


def test_many_small_copies_travel_in_one(devices: Devices) -> None:
    sources = [torch.randn(size, device=devices[0]).to(dtype) for size, dtype in enumerate([torch.float32] * 20, 1)]
    sources += [torch.arange(7, device=devices[0]), torch.ones(3, dtype=torch.bool, device=devices[0])]
    large = torch.randn(SMALL_NBYTES, device=devices[0])
    strided = torch.randn(4, 6, device=devices[0])[:, ::2]
    pairs = [(t, torch.empty_like(t, device=devices[1])) for t in (*sources, large, strided)]
    copies, nbytes = carried(0, 1)
    copy_many(pairs)
    assert carried(0, 1) == (copies + 3, nbytes + sum(source.nbytes for source, _ in pairs))
    for source, target in pairs:
        assert torch.equal(source.cpu(), target.cpu())


def test_many_copies_within_a_card(devices: Devices) -> None:
    sources = [torch.randn(size, device=devices[0]) for size in range(50)]
    targets = [torch.zeros_like(source) for source in sources]
    before = carried(0, 1), carried(0, None)
    copy_many(zip(sources, targets, strict=True))
    assert (carried(0, 1), carried(0, None)) == before
    assert all(torch.equal(source, target) for source, target in zip(sources, targets, strict=True))


def test_many_copies_keep_gradients(devices: Devices) -> None:
    sources = [torch.ones(2, device=devices[0], requires_grad=True) for _ in range(3)]
    targets = [torch.zeros(2, device=devices[1]) for _ in range(3)]
    copy_many([(source * (i + 1), target) for i, (source, target) in enumerate(zip(sources, targets, strict=True))])
    torch.stack(targets).sum().backward()
    assert [source.grad.tolist() for source in sources] == [[1, 1], [2, 2], [3, 3]]
