"""Copies of tensors whose pages lie on several cards.

source   | card 0 ................. | card 1 ....... |
target   | card 1 ....... | host ................... |
pieces   | 0 -> 1         | 0 -> h  | 1 -> h         |
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import poolrt
from poolrt.transfer import routes
from poolrt.transfer.copy import copy
from poolrt.transfer.extents import pieces
from poolrt.transfer.move import move
from poolrt.transfer.routes import HOST

MIB = 1 << 20
Devices = tuple[torch.device, torch.device]


@pytest.fixture
def pool() -> Iterator[poolrt.Pool]:
    """Two cards of 8 MiB for the pool, and the host."""
    topology = poolrt.virtual(cards=2, memory="64MiB")
    with poolrt.Pool(topology, host_memory="32MiB", limits=["8MiB", "8MiB"]) as pool:
        yield pool
    routes.current().forget("vcard")


def test_pieces_as_drawn(pool: poolrt.Pool) -> None:
    source, target = pool.empty(12 * MIB, dtype=torch.uint8, home=0), pool.empty(12 * MIB, dtype=torch.uint8, home=1)
    (here, first), (there, second) = pool.extents(source)
    assert [here, there] == [0, 1]
    assert [extent.card for extent in pool.extents(target)] == [1, None]
    found = pieces(source, target)
    room = pool.extents(target)[0].nbytes
    assert [(p.came_from.index, p.goes_to, p.source.nbytes) for p in found] == [
        (0, torch.device("vcard:1"), room),
        (0, HOST, first - room),
        (1, HOST, second),
    ]
    assert all(p.source.nbytes == p.target.nbytes for p in found)
    assert [p.source.data_ptr() - source.data_ptr() for p in found] == [0, room, first]


def test_values_arrive_whole(pool: poolrt.Pool) -> None:
    values = torch.randint(0, 256, (12 * MIB,), dtype=torch.uint8)
    source, target = pool.empty(12 * MIB, dtype=torch.uint8, home=0), pool.empty(12 * MIB, dtype=torch.uint8, home=1)
    copy(values, source)
    copy(source, target)
    assert torch.equal(target.cpu(), values)
    outside = torch.empty(12 * MIB, dtype=torch.uint8, device="vcard:1")
    assert torch.equal(copy(source[5:], outside[5:]).cpu(), values[5:])
    assert torch.equal(move(source, torch.device("vcard:1")).cpu(), values)


def test_what_lies_elsewhere_as_a_whole_goes_from_there(pool: poolrt.Pool) -> None:
    filler = pool.empty(8 * MIB, dtype=torch.uint8, home=0)
    spilled = pool.zeros(4 * MIB, dtype=torch.uint8, home=0)
    assert [extent.card for extent in pool.extents(spilled)] == [1]
    (piece,) = pieces(spilled, torch.empty(4 * MIB, dtype=torch.uint8, device="vcard:1"))
    assert (piece.came_from, piece.goes_to) == (torch.device("vcard:1"), torch.device("vcard:1"))
    assert piece.source is spilled
    del filler


def test_a_strided_tensor_is_one_piece(pool: poolrt.Pool) -> None:
    source = pool.zeros(3 * MIB, 4, dtype=torch.uint8, home=0)
    values = torch.randint(0, 256, (3 * MIB,), dtype=torch.uint8)
    assert len(pieces(source[:, 1], torch.empty(3 * MIB, dtype=torch.uint8, device="vcard:1"))) == 1
    copy(values, source[:, 1])
    assert torch.equal(source[:, 1].cpu(), values)
    assert not source[:, 0].any()


def test_a_lost_link_is_avoided_by_the_pieces_that_would_take_it(pool: poolrt.Pool) -> None:
    values = torch.randint(0, 256, (12 * MIB,), dtype=torch.uint8)
    source = pool.empty(12 * MIB, dtype=torch.uint8, home=0)
    copy(values, source)
    routes.current().lose(torch.device("vcard:0"), torch.device("vcard:1"), "for the test")
    target = torch.empty(12 * MIB, dtype=torch.uint8, device="vcard:1")
    assert torch.equal(copy(source, target).cpu(), values)


def test_outside_of_pools_nothing_is_looked_up() -> None:
    devices = [torch.device(card.device) for card in poolrt.virtual(cards=2, memory="1MiB").cards]
    source, target = torch.ones(3, device=devices[0]), torch.ones(3, device=devices[1])
    (piece,) = pieces(source, target)
    assert piece.source is source
    assert piece.target is target
