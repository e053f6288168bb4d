"""Collectives over links that take their time: nobody reads too early, links work at once, a dead one is gone round."""

import threading
import time
from itertools import permutations

import pytest
import torch
from transfer.collectives.slow_links import CARDS

from poolrt._C import host_driver
from poolrt.transfer import routes
from poolrt.transfer.collectives import collective
from poolrt.transfer.streams import side_stream
from poolrt.virtual_cards.links import carried, clear_links, is_up, set_fault

WAYS = ("one shot", "two shots", "ring")
NUMEL = 30_000
"""of float32: 12 ms over the slowest link"""


def brought(cards: list[torch.device]) -> list[torch.Tensor]:
    """Whole numbers: their sum is exact in any order."""
    return [torch.arange(NUMEL, dtype=torch.float32).add(1000 * number).to(card) for number, card in enumerate(cards)]


TOTAL = torch.arange(NUMEL, dtype=torch.float32) * CARDS + 1000 * sum(range(CARDS))


def values(tensors) -> list[torch.Tensor]:
    clear_links()
    return [tensor.cpu() for tensor in tensors]


@pytest.mark.parametrize("way", WAYS)
def test_sums_over_links_of_unequal_speed(cards, way):
    results = collective.all_reduce(brought(cards), way=way)
    assert all(torch.equal(result, TOTAL) for result in values(results))


@pytest.mark.parametrize("way", WAYS)
def test_copies_over_links_of_unequal_speed(cards, way):
    tensors = brought(cards)
    copies = collective.broadcast(tensors[1], cards, way=way)
    joined = collective.all_gather(tensors, way=way)
    expected = torch.arange(NUMEL, dtype=torch.float32) + 1000
    assert all(torch.equal(copy, expected) for copy in values(copies))
    assert all(torch.equal(whole, torch.cat(values(tensors))) for whole in values(joined))


@pytest.mark.parametrize(
    ("way", "whole_tensors"),
    [("one shot", [1, 1, 1, 1, 1, 1]), ("two shots", [2 / 3] * 6), ("ring", [4 / 3, 0, 0, 4 / 3, 4 / 3, 0])],
)
def test_what_the_links_carry_is_what_the_plan_says(cards, way, whole_tensors):
    """Links 0-1, 0-2, 1-0, 1-2, 2-0, 2-1, by what they carry of a tensor."""
    tensors = brought(cards)
    before = [carried(*pair)[1] for pair in permutations(range(CARDS), 2)]
    collective.all_reduce(tensors, way=way)
    after = [carried(*pair)[1] for pair in permutations(range(CARDS), 2)]
    nbytes = [late - early for early, late in zip(before, after, strict=True)]
    assert nbytes == [round(share * NUMEL * 4) for share in whole_tensors]


def test_links_work_at_the_same_time(cards):
    """The way to card 1 is held; the copy to card 2, which is begun after it, arrives all the same."""
    tensor = brought(cards)[0]
    blocked = side_stream(cards[0], f"out, to {cards[1]}")
    results: list[torch.Tensor] = []
    work = threading.Thread(target=lambda: results.extend(collective.broadcast(tensor, cards)))
    host_driver().stream_hold(blocked.stream_id)
    try:
        work.start()
        deadline = time.monotonic() + 20
        while carried(0, 2)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        arrived = carried(0, 2)[0], carried(0, 1)[0]
    finally:
        host_driver().stream_pass(blocked.stream_id)
        work.join()
    assert arrived == (1, 0)
    assert all(torch.equal(result, values([tensor])[0]) for result in values(results))


@pytest.mark.parametrize("unchanged", [False, True])
def test_what_was_brought_may_be_written_to_at_once_unless_promised_otherwise(cards, unchanged):
    """With the promise broken the copy is wrong, so the wait that is there without it is needed."""
    tensor = brought(cards)[0]
    expected = tensor.cpu()
    streams = [torch.Stream(device=card) for card in cards[:2]]
    with streams[0], streams[1]:
        copy = collective.broadcast(tensor, cards[1:2], unchanged=unchanged)[0]
        tensor.zero_()
    for stream in streams:
        stream.synchronize()
    assert torch.equal(values([copy])[0], expected) is not unchanged


@pytest.mark.parametrize("way", WAYS)
def test_a_link_that_dies_is_gone_round(cards, way):
    tensors = brought(cards)
    set_fault(0, 1, "dies")
    results = collective.all_reduce(tensors, way=way)
    assert not is_up(0, 1)
    assert routes.current().is_lost(cards[0], cards[1])
    assert all(torch.equal(result, TOTAL) for result in values(results))
    again = collective.all_reduce(tensors, way=way)
    assert all(torch.equal(result, TOTAL) for result in values(again))


def test_a_ring_avoids_a_lost_link(cards):
    routes.current().lose(cards[0], cards[1], "a test says so")
    tensors = brought(cards)
    before = carried(0, 1)
    collective.all_reduce(tensors, way="ring")
    assert carried(0, 1) == before
    assert carried(0, None) == (0, 0)


def test_gradients_cross_slow_links(cards):
    tensors = [tensor.requires_grad_() for tensor in brought(cards)]
    collective.reduce(tensors, cards[2]).sum().backward()
    assert all(torch.equal(gradient, torch.ones(NUMEL)) for gradient in values(tensor.grad for tensor in tensors))
