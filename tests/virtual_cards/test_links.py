"""Links that take their time, lie, or die."""

from __future__ import annotations

import os
import time

import pytest
import torch
from virtual_cards.held_streams import held

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import link_preset
from poolrt.units import MIB
from poolrt.virtual_cards import backend, links

NUMEL = MIB // 4


def streams() -> tuple[torch.Stream, torch.Stream]:
    return torch.Stream(device="vcard:0"), torch.Stream(device="vcard:1")


def card_tensors(numel: int = NUMEL) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(numel, device="vcard:0"), torch.zeros(numel, device="vcard:1")


def seconds_of(start: torch.Event, end: torch.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def test_a_blocking_copy_takes_its_time():
    links.set_link(0, 1, bytes_per_s=50 * MIB, latency_s=0.01)
    x, y = card_tensors()
    began_s = time.monotonic()
    y.copy_(x)
    assert time.monotonic() - began_s >= 0.03 - 1e-6
    assert y.sum() == NUMEL
    strided = torch.empty(2 * NUMEL, device="vcard:1")[::2]
    began_s = time.monotonic()
    strided.copy_(x)
    assert time.monotonic() - began_s >= 0.03 - 1e-6


def timed_copies(*pairs: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """When each copy has arrived, in seconds by the links' clocks; all are ready at the same moment."""
    streams = [torch.Stream(device=source.device) for source, _ in pairs]
    gate = torch.Stream(device="vcard:0")
    start = torch.Event("vcard:0", enable_timing=True)
    ends = [torch.Event(source.device, enable_timing=True) for source, _ in pairs]
    with held(gate):
        gate.record_event(start)
        for stream, (source, target), end in zip(streams, pairs, ends, strict=True):
            stream.wait_event(start)
            receiving = torch.Stream(device=target.device) if target.device.type == "vcard" else stream
            with stream, receiving:
                target.copy_(source, non_blocking=True)
            stream.record_event(end)
    return [seconds_of(start, end) for end in ends]


#     0 -> 1      | a ........ | b ........ |
#     1 -> 0      | c ........ |
#     0 -> host   | d ........ |
def test_one_direction_carries_one_copy_at_a_time_and_links_work_side_by_side():
    for source, target in ((0, 1), (1, 0), (0, None)):
        links.set_link(source, target, bytes_per_s=50 * MIB)
    x, y = card_tensors()
    arrivals = timed_copies((x, y), (x, torch.zeros_like(y)), (y, torch.zeros_like(x)), (x, torch.zeros(NUMEL)))
    assert arrivals == pytest.approx([0.02, 0.04, 0.02, 0.02])


def test_a_queue_of_copies_does_not_drift():
    """Each copy begins where the one before ended, by the model, whenever the thread wakes up."""
    links.set_link(0, 1, bytes_per_s=1000 * MIB, latency_s=1e-4)
    x, y = card_tensors()
    (side, other), count = streams(), 20
    start, end = (torch.Event("vcard:0", enable_timing=True) for _ in range(2))
    with held(side), side, other:
        start.record(side)
        for _ in range(count):
            y.copy_(x, non_blocking=True)
        end.record(side)
    assert seconds_of(start, end) == pytest.approx(count * 1.1e-3, abs=1e-6)


def test_bytes_arrive_over_the_time_of_the_copy():
    links.set_link(0, None, bytes_per_s=2 * MIB)
    x, y = torch.ones(NUMEL, device="vcard:0"), torch.zeros(NUMEL)
    side, _ = streams()
    with side:
        y.copy_(x, non_blocking=True)
    assert y[-1] == 0
    while y[0] == 0:
        time.sleep(0.001)
    assert y[-1] == 0  # the head is there, the tail comes 0.4 s later
    x.fill_(2)  # and whoever overwrites the source too early sends the new bytes
    side.synchronize()
    assert (y[0].item(), y[-1].item()) == (1, 2)


def test_each_direction_has_its_own_speed():
    links.set_link(0, 1, bytes_per_s=100 * MIB)
    links.set_link(1, 0, bytes_per_s=25 * MIB, latency_s=0.002)
    x, y = card_tensors()
    assert timed_copies((x, y)) == pytest.approx([0.01])
    assert timed_copies((y, x)) == pytest.approx([0.042])


def test_copies_are_counted_by_link():
    x, y = card_tensors()
    before = {pair: links.carried(*pair) for pair in ((0, 1), (1, 0), (None, 0), (1, None))}
    y.copy_(x)
    with streams()[0]:
        x.to("vcard:1", non_blocking=True)
    y.cpu()
    x.add_(1)
    x.clone()

    def more(*pair: int | None) -> tuple[int, int]:
        return tuple(now - then for now, then in zip(links.carried(*pair), before[pair], strict=True))

    assert more(0, 1) == (2, 2 * MIB)
    assert more(1, None) == (1, MIB)
    assert more(1, 0) == more(None, 0) == (0, 0)


@pytest.mark.parametrize("modelled", [False, True])
@pytest.mark.parametrize("queued", [False, True])
def test_a_link_that_lies(modelled, queued):
    if modelled:
        links.set_link(0, 1, bytes_per_s=1000 * MIB)
    side, other = streams()
    x = torch.arange(MIB, dtype=torch.int32, device="vcard:0").to(torch.uint8)
    y = torch.zeros(MIB, dtype=torch.uint8, device="vcard:1")

    def wrong_bytes(numel: int = MIB) -> list[int]:
        if queued:
            with side, other:
                y[:numel].copy_(x[:numel], non_blocking=True)
            other.synchronize()
        else:
            y[:numel].copy_(x[:numel])
        return (y[:numel].cpu() != x[:numel].cpu()).nonzero().flatten().tolist()

    assert wrong_bytes() == []
    links.set_fault(0, 1, "lies")
    assert wrong_bytes() == [MIB // 2]
    links.set_fault(0, 1, "lies", at_byte=17, at_least_nbytes=1000)
    assert wrong_bytes() == [17]
    assert wrong_bytes(999) == []
    assert links.is_up(0, 1)
    links.clear_faults()
    assert wrong_bytes() == []


def test_a_lie_in_a_strided_copy():
    links.set_fault(0, 1, "lies", at_byte=4 * 5)
    x = torch.arange(12.0, device="vcard:0")
    y = torch.zeros(4, 3, device="vcard:1").t()
    y.copy_(x.view(3, 4))
    assert (y.cpu() != x.cpu().view(3, 4)).nonzero().tolist() == [[1, 1]]


def test_a_dead_link_fails_at_once():
    links.set_fault(0, 1, "dies")
    x, y = card_tensors()
    assert not links.is_up(0, 1)
    with pytest.raises(torch.AcceleratorError, match=r"1048576 bytes.*vcard:0 -> vcard:1.*another route") as caught:
        y.copy_(x)
    assert caught.value.error_code == 220
    assert y.sum() == 0
    assert links.is_up(1, 0)
    x.copy_(y)
    through_host = x.cpu().to("vcard:1")
    assert torch.equal(through_host.cpu(), y.cpu())


def test_a_link_dies_after_so_many_copies_or_bytes():
    x, y = card_tensors()
    links.set_fault(0, 1, "dies", after_copies=2)
    for _ in range(2):
        assert links.is_up(0, 1)
        y.copy_(x)
    assert not links.is_up(0, 1)
    with pytest.raises(torch.AcceleratorError):
        y.copy_(x)
    links.set_fault(0, None, "dies", after_nbytes=5 * MIB // 2)
    for _ in range(2):
        x.cpu()
    with pytest.raises(torch.AcceleratorError, match="vcard:0 -> the host"):
        x.cpu()
    assert not links.is_up(0, None)
    links.clear_faults()
    assert x.cpu().sum() == NUMEL


@pytest.mark.parametrize("modelled", [False, True])
@pytest.mark.parametrize("told_by", ["stream", "event", "default", "query", "card", "operator"])
def test_a_queued_copy_that_failed_is_told_where_it_is_waited_for(told_by, modelled):
    if modelled:
        links.set_link(0, 1, bytes_per_s=1000 * MIB)
    links.set_fault(0, 1, "dies", after_copies=1)
    x, y = card_tensors()
    side, other = streams()
    with side, other:
        y.copy_(x, non_blocking=True)
        x.add_(1)
        y.copy_(x, non_blocking=True)
        event = other.record_event()

    def wait_for_it() -> None:
        if told_by == "stream":
            other.synchronize()
        elif told_by == "event":
            event.synchronize()
        elif told_by == "default":
            torch.vcard.default_stream(1).wait_event(event)
        elif told_by == "query":
            while not event.query():
                time.sleep(0.001)
        elif told_by == "card":
            torch.vcard.synchronize(1)
        else:
            with other:
                y.add_(1)

    with pytest.raises(torch.AcceleratorError, match="vcard:0 -> vcard:1") as caught:
        wait_for_it()
    assert caught.value.error_code == 220
    assert y.sum() == NUMEL  # the first copy came, the second did not
    for stream in (side, other):
        stream.synchronize()  # told once, so that the streams can be used for another route
    with side, other:
        y.copy_(x.to("cpu", non_blocking=False), non_blocking=True)
    other.synchronize()
    assert y.sum() == 2 * NUMEL


def test_an_event_never_says_that_a_failed_copy_is_fine():
    links.set_fault(0, None, "dies")
    side, _ = streams()
    with side:
        torch.zeros(NUMEL).copy_(torch.ones(NUMEL, device="vcard:0"), non_blocking=True)
        event = side.record_event()
    for _ in range(2):
        with pytest.raises(torch.AcceleratorError):
            event.synchronize()
    side.record_event(event)
    event.synchronize()


def test_cards_made_anew_have_sound_links():
    links.set_link(0, 1, bytes_per_s=1.0)
    links.set_fault(0, 1, "dies")
    backend.configure([64 * MIB] * 2)
    x, y = card_tensors()
    y.copy_(x)
    assert links.is_up(0, 1)
    assert links.carried(0, 1) == (1, MIB)


def test_a_paced_box_has_the_links_of_the_real_one():
    topology = poolrt.virtual(box="2x-rtx3090-nvlink", memory="64MiB", paced=True)
    for pair in ((0, 1), (1, 0)):
        way = topology.link(*pair)
        x, y = (torch.zeros(NUMEL, device=f"vcard:{card}") for card in pair)
        assert timed_copies((x, y)) == pytest.approx([MIB / way.bytes_per_s + way.latency_s], abs=1e-7)
    host = link_preset("host")
    x, y = card_tensors()
    assert timed_copies((y, torch.zeros(NUMEL))) == pytest.approx([MIB / host.bytes_per_s + host.latency_s], abs=1e-7)
    poolrt.virtual(cards=2, memory="64MiB")


@pytest.mark.parametrize("pair", [(0, 0), (None, None), (0, 2), (-1, 0)])
def test_links_that_are_not_there(pair):
    for ask in (
        lambda: links.set_link(*pair, bytes_per_s=1e9),
        lambda: links.set_fault(*pair, "dies"),
        lambda: links.is_up(*pair),
        lambda: links.carried(*pair),
    ):
        with pytest.raises(ConfigurationError, match=r"no link.*2 virtual cards"):
            ask()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: links.set_link(0, 1, bytes_per_s=0),
        lambda: links.set_link(0, 1, bytes_per_s=float("inf")),
        lambda: links.set_link(0, 1, bytes_per_s=1e9, latency_s=-1e-6),
        lambda: links.set_fault(0, 1, "sleeps"),
        lambda: links.set_fault(0, 1, "dies", at_byte=3),
        lambda: links.set_fault(0, 1, "lies", after_copies=3),
        lambda: links.set_fault(0, 1, "dies", after_copies=-1),
    ],
)
def test_models_and_faults_that_cannot_be(ask):
    with pytest.raises(ConfigurationError):
        ask()


def test_the_carriers_thread_comes_late_and_goes():
    def carriers() -> int:
        names = []
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/comm") as file:
                    names.append(file.read().strip())
            except FileNotFoundError:
                continue  # it ended in between
        return names.count("poolrt-carrier")

    deadline_s = time.monotonic() + 5
    while carriers() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert carriers() == 0
    x, y = card_tensors()
    side, other = streams()
    links.set_link(1, 0, bytes_per_s=5 * MIB)
    with side, other:
        y.copy_(x, non_blocking=True)  # no model: done by the caller
        assert side.query()
        y.copy_(x)
        x.copy_(y)  # blocking: the caller waits itself
        assert carriers() == 0
        x.copy_(y, non_blocking=True)
        assert carriers() == 1
    side.synchronize()
    deadline_s = time.monotonic() + 5
    while carriers() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert carriers() == 0
