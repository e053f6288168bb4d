"""The pool on a CUDA GPU cut into logical cards, with the host's own pages behind it: run by `make gpu-check`.

logical card 0 (64 MiB) | logical card 1 (64 MiB) | host (64 MiB)         all but the links between real cards
"""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import poolrt
from poolrt.errors import PoolError
from poolrt.memory.extent import Extent
from poolrt.memory.pool import Pool
from poolrt.runtime.pooled import pooled_of

MIB = 1 << 20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def pool():
    pool = Pool(poolrt.logical("cuda:0", cards=2, memory="64MiB"), host_memory="64MiB")
    yield pool
    gc.collect()
    torch.cuda.synchronize()
    pool.close()


def test_a_tensor_over_two_shares_and_the_host(pool):
    count = 40 * MIB
    t = pool.empty(count, dtype=torch.float32)
    assert t.device == torch.device("cuda:0")
    assert pool.extents(t) == [Extent(0, 64 * MIB), Extent(1, 64 * MIB), Extent(None, 32 * MIB)]
    torch.arange(count, dtype=torch.float32, device="cuda:0", out=t)
    for border in (16 * MIB, 32 * MIB):
        assert t[border - 2 : border + 2].tolist() == [float(border + i) for i in range(-2, 2)]
    assert torch.equal(t.cpu(), torch.arange(count, dtype=torch.float32))
    now = pool.stats()
    assert sum(tier.mapped_nbytes for tier in now.tiers) == now.live_nbytes + now.cached_nbytes + now.deferred_nbytes


def test_then_there_is_no_room_and_frees_give_everything_back(pool):
    t = pool.empty(180 * MIB, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError, match="host"):
        pool.empty(40 * MIB, dtype=torch.uint8)
    t.fill_(3)
    assert int(t.sum()) == 3 * 180 * MIB
    del t
    torch.cuda.empty_cache()
    gc.collect()
    pool.trim()


def test_the_second_request_needs_no_driver_call(pool):
    t = pool.empty(32 * MIB, dtype=torch.uint8)
    del t
    before = pool.stats().driver_calls
    t = pool.empty(32 * MIB, dtype=torch.uint8)
    assert pool.stats().driver_calls == before
    del t


def test_memory_in_use_on_another_stream_is_not_handed_out(pool):
    """A block freed while a side stream still reads it keeps its values until that stream has passed."""
    side = torch.cuda.Stream()
    t = pool.full((16 * MIB,), 1, dtype=torch.uint8)
    result = torch.empty((), dtype=torch.int64, device="cuda:0")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        torch.sum(t, dtype=torch.int64, dim=0, out=result)
    t.record_stream(side)
    del t
    other = pool.full((16 * MIB,), 7, dtype=torch.uint8)
    torch.cuda.synchronize()
    assert int(result) == 16 * MIB
    assert int(other.sum()) == 7 * 16 * MIB


def test_other_libraries_share_it(pool):
    cupy = pytest.importorskip("cupy")
    t = pool.full((70 * MIB,), 2, dtype=torch.uint8)
    array = cupy.from_dlpack(t)
    array[64 * MIB - 1 : 64 * MIB + 1] = 9
    cupy.cuda.Device().synchronize()
    assert t[64 * MIB - 2 : 64 * MIB + 2].tolist() == [2, 9, 9, 2]
    del array


def test_threads_of_forward_and_backward_allocate_from_it(pool):
    weight = torch.randn(256, 256, device="cuda:0", requires_grad=True)
    found: dict[int, bool] = {}

    def work(home: int) -> None:
        with torch.autograd.set_multithreading_enabled(False), pool.use(home):
            x = torch.randn(4096, 256, device="cuda:0") @ weight
            (gradient,) = torch.autograd.grad(x.square().sum(), weight)
            found[home] = {e.card for t in (x, gradient) for e in pool.extents(t)} == {home}

    threads = [threading.Thread(target=work, args=(home,)) for home in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: True}


def test_move_brings_pages_home(pool):
    filling = pool.empty(62 * MIB, dtype=torch.uint8)
    t = torch.arange(32 * MIB, device="cuda:0") % 251
    t = pool.like(t.to(torch.uint8))
    expected = t.cpu()
    assert pool.extents(t) != [Extent(0, 32 * MIB)]
    del filling
    torch.cuda.empty_cache()
    pool.move(t, home=0)
    assert pool.extents(t) == [Extent(0, 32 * MIB)]
    assert torch.equal(t.cpu(), expected)


def test_a_pool_with_tensors_does_not_close(pool):
    t = pool.empty(4 * MIB, dtype=torch.uint8)
    with pytest.raises(PoolError, match="still in use"):
        pool.close()
    del t


def test_a_step_whose_state_lies_on_the_host_gives_the_same_bits():
    torch.manual_seed(0)
    plain = nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(1024, 1024), nn.ReLU()))).to("cuda:0")
    batch = torch.randn(16, 1024, device="cuda:0")
    weights = {}
    for name, memory in (("fits", "512MiB"), ("spills", "52MiB")):
        model = copy.deepcopy(plain)
        topology = poolrt.logical("cuda:0", cards=2, memory=memory)
        poolrt.shard(model, topology=topology, sample=batch, micro_batches=2, spill="1GiB")
        spill = pooled_of(model).spill
        assert (spill is not None) == (name == "spills")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[name] = [parameter.detach().clone() for parameter in model.parameters()]
        if spill is not None:
            assert spill.pool.stats().tier(None).mapped_nbytes > 0
        del model, optimizer
        gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(weights["fits"], weights["spills"], strict=True))
