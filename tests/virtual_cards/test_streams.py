"""Order on virtual cards: what is in a side stream is done one after the other, and only a wait makes others wait.

held stream    | gate | copy x | event e |
other stream                             | wait e | copy y          nothing here is done before stream_pass
"""

from __future__ import annotations

import threading

import pytest
import torch
from virtual_cards.held_streams import held

import poolrt._C as _C
from poolrt.units import MIB
from poolrt.virtual_cards import links

NUMEL = MIB // 4


@pytest.fixture
def side() -> torch.Stream:
    return torch.Stream(device="vcard:0")


@pytest.fixture
def other() -> torch.Stream:
    return torch.Stream(device="vcard:1")


def ones(device: str = "cpu") -> torch.Tensor:
    return torch.ones(NUMEL, device=device)


def test_streams_are_told_apart(side):
    assert side != torch.vcard.default_stream(0)
    assert torch.Stream(device="vcard:0") != side
    assert torch.vcard.default_stream(1).device == torch.device("vcard:1")
    assert torch.vcard.Stream is torch.Stream


def test_the_current_stream_is_each_threads_and_each_cards(side, other):
    seen = []
    with side:
        assert torch.vcard.current_stream(0) == side
        assert torch.vcard.current_stream(1) == torch.vcard.default_stream(1)
        thread = threading.Thread(target=lambda: seen.append(torch.vcard.current_stream(0)))
        thread.start()
        thread.join()
    assert seen == [torch.vcard.default_stream(0)]
    assert torch.vcard.current_stream(0) == torch.vcard.default_stream(0)
    torch.vcard.set_stream(other)
    assert torch.vcard.current_stream(1) == other
    torch.vcard.set_stream(torch.vcard.default_stream(1))
    with torch.vcard.stream(side):
        assert torch.vcard.current_stream() == side


def test_a_queued_copy_is_done_when_its_turn_comes(side):
    x, y = ones("vcard:0"), torch.zeros(NUMEL)
    with held(side):
        with side:
            y.copy_(x, non_blocking=True)
        assert not side.query()
        assert y.sum() == 0
    side.synchronize()
    assert side.query()
    assert y.sum() == NUMEL


def test_a_copy_to_a_card_is_in_that_cards_stream(side):
    x = ones()
    with held(side), side:
        y = x.to("vcard:0", non_blocking=True)
        assert not side.query()
    side.synchronize()
    assert y.sum() == NUMEL


def test_between_cards_both_streams_take_part(side, other):
    """aten: the copy is in the source's stream, after what the target's stream has, which then waits for the copy."""
    x, y = ones("vcard:0"), torch.zeros(NUMEL, device="vcard:1")
    for holding in (side, other):
        y.zero_()
        with held(holding):
            with side, other:
                y.copy_(x, non_blocking=True)
            assert not side.query()
            assert not other.query()
        other.synchronize()
        assert y.sum() == NUMEL


@pytest.mark.parametrize("how", ["wait_event", "wait_stream", "event.wait"])
def test_a_stream_waits_for_another(side, other, how):
    x, middle, y = ones("vcard:0"), torch.zeros(NUMEL), torch.zeros(NUMEL, device="vcard:1")
    with held(side):
        with side:
            middle.copy_(x, non_blocking=True)
            event = side.record_event()
        if how == "wait_event":
            other.wait_event(event)
        elif how == "wait_stream":
            other.wait_stream(side)
        else:
            event.wait(other)
        with other:
            y.copy_(middle, non_blocking=True)
        assert not other.query()
        assert not event.query()
    other.synchronize()
    assert event.query()
    assert y.sum() == NUMEL


def test_without_a_wait_the_old_bytes_go_on(side, other):
    """What the tests above would miss if copies were made at once: here nobody waits, and the bytes are wrong."""
    x, middle, y = ones("vcard:0"), torch.zeros(NUMEL), torch.zeros(NUMEL, device="vcard:1")
    with held(side):
        with side:
            middle.copy_(x, non_blocking=True)
        with other:
            y.copy_(middle, non_blocking=True)
        other.synchronize()
    side.synchronize()
    assert y.sum() == 0


def test_an_event_stands_for_its_last_record(side):
    event = torch.Event("vcard:0")
    assert event.query()
    with held(side):
        side.record_event(event)
        assert not event.query()
        torch.vcard.default_stream(0).record_event(event)
        assert event.query()


def test_an_operator_in_a_side_stream_comes_after_what_is_queued(side):
    links.set_link(None, 0, bytes_per_s=5 * MIB)
    x = ones()
    with side:
        y = x.to("vcard:0", non_blocking=True)
        assert not side.query()
        total = (y + 1).sum()
        assert side.query()
    assert total.item() == 2 * NUMEL


def test_the_default_stream_makes_its_caller_wait(side):
    x, y = ones("vcard:0"), torch.zeros(NUMEL)
    driver, passing = _C.host_driver(), threading.Event()

    def let_go() -> None:
        passing.wait()  # the interpreter's lock is free while the other thread waits for the event
        driver.stream_pass(side.stream_id)

    thread = threading.Thread(target=let_go)
    driver.stream_hold(side.stream_id)
    with side:
        y.copy_(x, non_blocking=True)
        event = side.record_event()
    thread.start()
    passing.set()
    torch.vcard.default_stream(0).wait_event(event)
    assert y.sum() == NUMEL
    thread.join()


def test_what_cannot_be_queued_is_done_at_once(side):
    x = ones("vcard:0")
    with side:
        cast = torch.empty(NUMEL, dtype=torch.float64).copy_(x, non_blocking=True)
        strided = torch.empty(2 * NUMEL)[::2].copy_(x, non_blocking=True)
        blocking = torch.empty(NUMEL).copy_(x)
        foreign = x.to("vcard:1").cpu().numpy()
        borrowed = torch.from_numpy(foreign).to("vcard:0", non_blocking=True)
    for result in (cast, strided, blocking, borrowed.cpu()):
        assert result.sum() == NUMEL


def test_the_whole_card_is_waited_for(side):
    links.set_link(0, None, bytes_per_s=5 * MIB)
    x, y = ones("vcard:0"), torch.zeros(NUMEL)
    with side:
        y.copy_(x, non_blocking=True)
    torch.vcard.synchronize(1)
    assert not side.query()
    torch.vcard.synchronize(0)
    assert side.query()
    assert y.sum() == NUMEL


def test_a_queued_copy_keeps_its_memory(side):
    x, y = ones("vcard:0"), torch.zeros(NUMEL)
    before = torch.vcard.memory_allocated(0)
    with held(side):
        with side:
            y.copy_(x, non_blocking=True)
        x.record_stream(side)
        del x
        assert torch.vcard.memory_allocated(0) == before
    side.synchronize()
    assert torch.vcard.memory_allocated(0) == before - 4 * NUMEL
    assert y.sum() == NUMEL


def test_events_tell_the_time_between_them(side):
    links.set_link(0, None, bytes_per_s=100 * MIB, latency_s=0.001)
    x, y = ones("vcard:0"), torch.zeros(NUMEL)
    start, end = (torch.Event("vcard:0", enable_timing=True) for _ in range(2))
    with side:
        start.record()
        y.copy_(x, non_blocking=True)
        end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 11.0 - 1e-3


def test_backward_runs_in_the_stream_of_forward(side):
    x = torch.ones(8, device="vcard:0", requires_grad=True)
    with side:
        y = (x * 3).to("vcard:1", non_blocking=True)
    torch.vcard.default_stream(1).wait_stream(side)
    (y * y).sum().backward()
    assert torch.equal(x.grad.cpu(), torch.full((8,), 18.0))
