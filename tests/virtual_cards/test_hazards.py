"""Tensors that are freed too early for a GPU are found, however fast the copies are.

stream of the tensor   | x made | x freed: its memory may be given to the next work here
another stream                       | copy of x ....... |      nobody told the first stream to wait for it
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from virtual_cards.held_streams import held

from poolrt.virtual_cards import links

NUMEL = 1024


@pytest.fixture(autouse=True)
def no_hazards_before_and_after() -> Iterator[None]:
    torch.vcard.reset_hazards()
    yield
    torch.vcard.reset_hazards()


@pytest.fixture
def side() -> torch.Stream:
    return torch.Stream(device="vcard:0")


@pytest.fixture
def other() -> torch.Stream:
    return torch.Stream(device="vcard:1")


def default(card: int = 0) -> torch.Stream:
    return torch.vcard.default_stream(card)


def queue_copy(x: torch.Tensor, stream: torch.Stream) -> torch.Tensor:
    with stream:
        return x.to("cpu", non_blocking=True)


@pytest.mark.parametrize("modelled", [False, True])
def test_a_tensor_freed_under_a_copy(side, modelled):
    if modelled:
        links.set_link(0, None, bytes_per_s=1e6)
    x = torch.ones(NUMEL, device="vcard:0")
    queue_copy(x, side)
    assert torch.vcard.hazards() == []
    del x
    (sentence,) = torch.vcard.hazards()
    assert "4096 bytes on vcard:0, made in the default stream of vcard:0" in sentence
    assert f"stream {side.stream_id} of vcard:0" in sentence
    assert "record_stream" in sentence
    torch.vcard.reset_hazards()
    assert torch.vcard.hazards() == []
    side.synchronize()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_recorded_stream_is_no_hazard(side, when):
    x = torch.ones(NUMEL, device="vcard:0")
    if when == "before":
        x.record_stream(side)
    queue_copy(x, side)
    if when == "after":
        x.record_stream(side)
    del x
    assert torch.vcard.hazards() == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda side, event, other: side.synchronize(),
        lambda side, event, other: event.synchronize(),
        lambda side, event, other: event.query(),
        lambda side, event, other: torch.vcard.synchronize(0),
        lambda side, event, other: default().wait_event(event),
        lambda side, event, other: default().wait_stream(side),
        lambda side, event, other: (other.wait_event(event), default().wait_stream(other)),
        lambda side, event, other: (other.wait_event(event), other.synchronize()),
    ],
)
def test_a_use_that_was_waited_for_is_no_hazard(side, other, wait):
    x = torch.ones(NUMEL, device="vcard:0")
    queue_copy(x, side)
    wait(side, side.record_event(), other)
    del x
    assert torch.vcard.hazards() == []


def test_waits_that_do_not_help(side, other):
    x = torch.ones(NUMEL, device="vcard:0")
    before = side.record_event()
    queue_copy(x, side)
    before.synchronize()
    other.wait_stream(side)  # the tensor's own stream and the program know nothing of it
    side.wait_stream(default())
    del x
    assert len(torch.vcard.hazards()) == 1


def test_another_stream_than_the_recorded_one(side):
    x = torch.ones(NUMEL, device="vcard:0")
    x.record_stream(torch.Stream(device="vcard:0"))
    queue_copy(x, side)
    del x
    assert len(torch.vcard.hazards()) == 1


def test_what_a_side_stream_made_is_its_own(side):
    with side:
        x = torch.ones(NUMEL, device="vcard:0")
        y = (x + 1).to("cpu", non_blocking=True)
        del x
    assert y.sum() == 2 * NUMEL
    assert torch.vcard.hazards() == []


def test_made_in_a_side_stream_and_used_in_the_default_stream(side, other):
    """The classic one: fetched in a side stream, used in the default stream, freed without record_stream."""
    x = torch.ones(NUMEL, device="vcard:0")
    for recorded in (True, False):
        with side, other:
            fetched = x.to("vcard:1", non_blocking=True)
        default(1).wait_stream(other)
        result = fetched + 1
        if recorded:
            fetched.record_stream(default(1))
        x.record_stream(side)
        fetched.record_stream(side)
        del fetched
        assert len(torch.vcard.hazards()) == (0 if recorded else 1)
    assert result.sum().item() == 2 * NUMEL


def test_an_item_waits_for_its_stream(side):
    with side:
        x = torch.ones((), device="vcard:0")
    assert (x + 1).item() == 2
    del x
    assert torch.vcard.hazards() == []


def test_a_view_keeps_the_memory(side):
    x = torch.ones(NUMEL, device="vcard:0")
    view = x[10:]
    queue_copy(x, side)
    del x
    assert torch.vcard.hazards() == []
    del view
    assert len(torch.vcard.hazards()) == 1


def test_memory_that_is_used_again_starts_anew(side):
    for _ in range(3):
        x = torch.ones(NUMEL, device="vcard:0")
        x.record_stream(side)
        queue_copy(x, side)
        del x
    x = torch.ones(NUMEL, device="vcard:0")  # likely the same address; nothing is recorded for it
    queue_copy(x, side)
    del x
    assert len(torch.vcard.hazards()) == 1


def test_between_cards_the_target_waits_by_itself(side, other):
    x = torch.ones(NUMEL, device="vcard:0")
    with side, other:
        y = x.to("vcard:1", non_blocking=True)
    y.record_stream(side)
    del y
    assert torch.vcard.hazards() == []
    del x
    assert len(torch.vcard.hazards()) == 1


def test_a_held_copy_lives_although_its_tensor_is_gone(side):
    x = torch.ones(NUMEL, device="vcard:0")
    with held(side):
        y = queue_copy(x, side)
        del x
        torch.zeros(NUMEL, device="vcard:0")
    side.synchronize()
    assert y.sum() == NUMEL
    assert len(torch.vcard.hazards()) == 1


def test_training_in_the_default_stream_has_none(side):
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LSTM(8, 8)).to("vcard:0")
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.ones(2, 3, 8, device="vcard:0"))[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    del model, optimizer
    assert torch.vcard.hazards() == []


def test_the_list_ends_somewhere(side):
    for _ in range(110):
        queue_copy(torch.ones(1, device="vcard:0"), side)
    assert len(torch.vcard.hazards()) == 100
