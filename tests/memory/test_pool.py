"""Tensors in a pool over virtual cards: larger than a card, spilled, moved, used as any other.

64 MiB a card     | card 0: 64 MiB            | card 1: 36 of 64 MiB |  host: 20 MiB
                  |<-------- one tensor of 100 MiB ------->|
"""

from __future__ import annotations

import copy
import gc
import io
import os
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

import poolrt
from poolrt.errors import ConfigurationError, PoolError
from poolrt.memory.dlpack import exported
from poolrt.memory.extent import Extent
from poolrt.memory.pool import Pool

MIB = 1 << 20


@pytest.fixture
def cards():
    return poolrt.virtual(cards=2, memory="64MiB")


@pytest.fixture
def pool(cards):
    pool = Pool(cards, host_memory="20MiB")
    yield pool
    gc.collect()
    pool.close()


def as_array(t: torch.Tensor) -> np.ndarray:
    """The same memory for NumPy, whose temporaries no card has to hold."""
    return np.from_dlpack(exported(t))


def used() -> list[int]:
    return [torch.vcard.memory_allocated(card) for card in range(2)]


def agree(pool: Pool) -> None:
    """The sums of the statistics."""
    now = pool.stats()
    kept = now.live_nbytes + now.cached_nbytes + now.deferred_nbytes
    assert sum(tier.mapped_nbytes for tier in now.tiers) == kept
    assert now.requested_nbytes <= now.live_nbytes


def test_a_tensor_larger_than_any_card(pool):
    count = 25 * MIB
    t = pool.empty(count, dtype=torch.float32)
    assert t.device == torch.device("vcard:0")
    assert pool.extents(t) == [Extent(0, 64 * MIB), Extent(1, 36 * MIB)]
    assert used() == [64 * MIB, 36 * MIB]
    pattern = torch.arange(count, dtype=torch.float32)
    t.copy_(pattern)
    border = 16 * MIB
    assert t[border - 2 : border + 2].tolist() == pattern[border - 2 : border + 2].tolist()
    with pool.use():  # card 0 itself is full
        sums = t.view(5 * 1024, -1).sum(1)
    assert torch.equal(sums.cpu(), pattern.view(5 * 1024, -1).sum(1))
    agree(pool)


def test_what_does_not_fit_the_cards_goes_to_the_host_and_then_nowhere(pool):
    first = pool.empty(100 * MIB, dtype=torch.uint8)
    second = pool.full((48 * MIB,), 7, dtype=torch.uint8)
    assert pool.extents(second) == [Extent(1, 28 * MIB), Extent(None, 20 * MIB)]
    assert (as_array(second) == 7).all()
    agree(pool)
    with pytest.raises(torch.OutOfMemoryError) as refused:
        pool.empty(4 * MIB, dtype=torch.uint8)
    for words in ("card 0", "card 1", "host"):
        assert words in str(refused.value)
    del first, second
    assert pool.stats().live_nbytes == 0
    pool.trim()
    assert used() == [0, 0]
    assert pool.stats().tier(None).mapped_nbytes == 0


def test_nothing_is_left_after_close(cards):
    def own() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            mappings = sum("memfd" in line for line in maps)
        return mappings, len(os.listdir("/proc/self/fd"))

    torch.ones(1, device="vcard:0")
    before = own()
    pool = Pool(cards, host_memory="20MiB")
    tensors = [pool.zeros(30 * MIB, dtype=torch.uint8, home=home) for home in (0, 1, 0, 1)]
    assert own() != before
    with pytest.raises(PoolError, match=re.escape("(31457280,), torch.uint8, on vcard:1")):
        pool.close()
    assert not as_array(tensors[0]).any()
    del tensors
    pool.close()
    assert own() == before
    assert used() == [0, 0]
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        pool.empty(3)


def test_a_tensor_outlives_its_pool(cards):
    t = Pool(cards).full((3 * MIB,), 5, dtype=torch.uint8)
    gc.collect()
    assert (as_array(t) == 5).all()
    del t
    gc.collect()
    assert used() == [0, 0]


def test_use_leads_this_threads_allocations_into_the_pool(pool):
    def elsewhere() -> None:
        with pytest.raises(PoolError):
            pool.extents(torch.ones(2, device="vcard:0"))

    with pool.use():
        a = torch.ones(3 * MIB, device="vcard:0")
        b = a * 2
        c = torch.ones(5, device="vcard:1")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    outside = torch.ones(3, device="vcard:0")
    assert pool.extents(a) == pool.extents(b) == [Extent(0, 12 * MIB)]
    assert pool.extents(c) == [Extent(1, 20)]
    with pytest.raises(PoolError):
        pool.extents(outside)
    agree(pool)


def test_uses_nest(pool, cards):
    with Pool(cards) as other:
        with pool.use():
            with other.use():
                inner = torch.ones(4, device="vcard:0")
            outer = torch.ones(4, device="vcard:0")
        assert other.extents(inner) == pool.extents(outer) == [Extent(0, 16)]
        del inner


def test_an_error_in_use_leaves_the_pool(pool):
    with pytest.raises(ZeroDivisionError), pool.use():
        raise ZeroDivisionError
    with pytest.raises(PoolError):
        pool.extents(torch.ones(2, device="vcard:0"))


def test_the_constructors_agree_with_torchs(pool):
    plain = torch.arange(6.0).view(2, 3)
    assert torch.equal(pool.zeros(2, 3).cpu(), torch.zeros(2, 3))
    assert torch.equal(pool.full((2, 3), 4.5).cpu(), torch.full((2, 3), 4.5))
    assert torch.equal(pool.like(plain, home=1).cpu(), plain)
    assert pool.empty((2, 3), dtype=torch.int16, home=1).shape == (2, 3)
    assert pool.empty(()).shape == ()
    assert pool.empty(0).shape == (0,)


def test_views_share_and_in_place_operations_write(pool):
    t = pool.zeros(4, 8)
    t[1, 2:4] = 3
    view = t.view(8, 4).t()
    view.add_(1)
    expected = torch.zeros(4, 8)
    expected[1, 2:4] = 3
    assert torch.equal(t.cpu(), expected + 1)
    assert pool.extents(view) == pool.extents(t)


def test_a_spilled_leaf_learns_as_one_on_a_card(cards):
    """AdamW's state over both cards and the host: bit-equal to the CPU. 6 MiB of card 0 are left to the gradient."""
    pool = Pool(cards, host_memory="20MiB", limits=["58MiB", "64MiB"])
    torch.manual_seed(0)
    plain = nn.Linear(1024, 1024, bias=False)
    pooled = copy.deepcopy(plain).to("vcard:0")
    filling = [pool.empty(50 * MIB, dtype=torch.uint8), pool.empty(62 * MIB, dtype=torch.uint8, home=1)]
    pooled.weight.data = pool.like(pooled.weight)
    optimizers = [torch.optim.AdamW(module.parameters()) for module in (plain, pooled)]
    batch = torch.randn(4, 1024)
    for _ in range(2):
        for module, optimizer, device in zip((plain, pooled), optimizers, ("cpu", "vcard:0"), strict=True):
            optimizer.zero_grad()
            module(batch.to(device)).square().sum().backward()
            with pool.use():
                optimizer.step()
    state = optimizers[1].state[pooled.weight]
    places = {
        extent.card
        for tensor in (pooled.weight, state["exp_avg"], state["exp_avg_sq"])
        for extent in pool.extents(tensor)
    }
    assert places == {0, 1, None}
    assert torch.equal(plain.weight, pooled.weight.cpu())
    assert torch.equal(optimizers[0].state[plain.weight]["exp_avg"], state["exp_avg"].cpu())
    del filling, pooled, optimizers, state, module, optimizer
    pool.close()


def test_state_dict_and_copies_of_pool_tensors(pool):
    module = nn.Linear(8, 8).to("vcard:0")
    module.weight.data = pool.like(module.weight)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)
    assert torch.equal(loaded["weight"].cpu(), module.weight.cpu())
    twin = copy.deepcopy(module)
    twin.weight.data.zero_()
    assert int(module.weight.count_nonzero()) > 0
    module.load_state_dict({"weight": torch.ones(8, 8), "bias": torch.ones(8)})
    assert pool.extents(module.weight) == [Extent(0, 256)]
    assert int(module.weight.sum()) == 64


def test_move_brings_spilled_pages_home(pool):
    filling = pool.empty(62 * MIB, dtype=torch.uint8)
    t = pool.empty(8 * MIB, dtype=torch.uint8)
    t.copy_(torch.arange(8 * MIB) % 251)
    view, expected = t[5:], t.cpu()
    assert pool.extents(t) == [Extent(0, 2 * MIB), Extent(1, 6 * MIB)]
    del filling
    address = t.data_ptr()
    pool.move(t, home=0)
    assert pool.extents(t) == [Extent(0, 8 * MIB)]
    assert t.data_ptr() == address
    assert torch.equal(t.cpu(), expected)
    assert torch.equal(view.cpu(), expected[5:])
    pool.move(t, home=1)
    assert pool.extents(t) == [Extent(1, 8 * MIB)]
    assert torch.equal(t.cpu(), expected)
    assert t.device == torch.device("vcard:0")
    agree(pool)


def test_move_without_room_moves_nothing(cards):
    with Pool(cards, limits=["64MiB", "4MiB"]) as pool:
        t = pool.full((40 * MIB,), 3, dtype=torch.uint8)
        with pytest.raises(torch.OutOfMemoryError):
            pool.move(t, home=1)
        assert pool.extents(t) == [Extent(0, 40 * MIB)]
        assert (as_array(t) == 3).all()
        del t


def test_the_second_request_needs_no_driver_call(pool):
    del_me = pool.empty(9 * MIB, dtype=torch.uint8)
    del del_me
    before = pool.stats()
    again = pool.empty(9 * MIB, dtype=torch.uint8)
    after = pool.stats()
    assert after.driver_calls == before.driver_calls
    assert after.hits == before.hits + 1
    del again


def test_limits_hold_per_card(cards):
    with Pool(cards, host_memory="4MiB", limits=["6MiB", 0]) as pool:
        t = pool.empty(10 * MIB, dtype=torch.uint8)
        assert pool.extents(t) == [Extent(0, 6 * MIB), Extent(None, 4 * MIB)]
        with pytest.raises(torch.OutOfMemoryError):
            pool.empty(2 * MIB, dtype=torch.uint8, home=1)
        del t


def test_ordinary_tensors_and_the_pool_share_a_cards_memory(pool):
    ordinary = torch.empty(40 * MIB, dtype=torch.uint8, device="vcard:0")
    t = pool.empty(30 * MIB, dtype=torch.uint8)
    assert pool.extents(t) == [Extent(0, 24 * MIB), Extent(1, 6 * MIB)]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 * MIB, dtype=torch.uint8, device="vcard:0")
    del ordinary


def test_bad_requests_are_refused_with_words(pool, cards):
    with pytest.raises(ConfigurationError, match="there is no card 2"):
        pool.empty(3, home=2)
    with pytest.raises(ConfigurationError, match="2 cards need as many limits, got 1"):
        Pool(cards, limits=["1MiB"])
    with pytest.raises(ConfigurationError, match="cannot read"):
        Pool(cards, host_memory="4 apples")
    with pytest.raises(PoolError, match=re.escape("shape (3,), torch.float32, on cpu is not in this pool")):
        pool.extents(torch.ones(3))


def test_cards_that_do_not_reach_each_other_share_no_tensor():
    """Their peer access is refused, so what one has no room for goes to the host."""
    with Pool(poolrt.virtual(cards=2, memory="8MiB", link="host"), host_memory="4MiB") as pool:
        t = pool.empty(10 * MIB, dtype=torch.uint8)
        assert pool.extents(t) == [Extent(0, 8 * MIB), Extent(None, 2 * MIB)]
        with pytest.raises(torch.OutOfMemoryError, match="out of reach"):
            pool.empty(4 * MIB, dtype=torch.uint8)
        del t


def test_the_nearest_peer_is_asked_first():
    """Card 2 is joined to card 0 by the faster link."""
    cards = poolrt.virtual(cards=3, memory="4MiB").cards
    ends = {(0, 1): 10e9, (0, 2): 50e9}
    links = [
        poolrt.Link(source=a, target=b, kind="PCIE", relation="PHB", bytes_per_s=speed, latency_s=0.0)
        for pair, speed in ends.items()
        for a, b in (pair, pair[::-1])
    ]
    with Pool(poolrt.Topology(cards=cards, links=tuple(links))) as pool:
        t = pool.empty(10 * MIB, dtype=torch.uint8)
        assert pool.extents(t) == [Extent(0, 4 * MIB), Extent(2, 4 * MIB), Extent(1, 2 * MIB)]
        del t
