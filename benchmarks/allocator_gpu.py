"""The allocators that are compared on a GPU, behind the same few calls as those in allocator_contenders.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from allocator_contenders import CARD_MEMORY, Contender, Opener, core_pool, what_pool_tells

import poolrt
from poolrt import _C
from poolrt.memory.pool import Pool
from poolrt.units import parse_nbytes

DEVICE = "cuda:0"
ENVIRONMENT = {"torch.empty, expandable segments": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
"""what a contender's process must find set before torch looks"""


@contextmanager
def torch_on_gpu() -> Iterator[Contender]:
    """The caching allocator of torch, set up as the environment says."""
    torch.cuda.init()
    yield Contender(
        allocate=partial(torch.empty, dtype=torch.uint8, device=DEVICE),
        trim=torch.cuda.empty_cache,
        held_nbytes=partial(torch.cuda.memory_reserved, 0),
        counts=_torch_counts,
    )


def _torch_counts() -> dict[str, int]:
    """Of torch's allocator: segments asked of the driver, and the blocks that were served without."""
    stats = torch.cuda.memory_stats(0)
    misses = stats["segment.all.allocated"]
    calls = stats["num_device_alloc"] + stats["num_device_free"]
    return {"hits": stats["allocation.all.allocated"] - misses, "misses": misses, "driver_calls": calls}


@contextmanager
def torch_in_pool() -> Iterator[Contender]:
    """The pool under torch's MemPool, as `pool.use()` has it; torch caches on top of it."""
    topology = poolrt.logical(device=DEVICE, cards=1, memory=CARD_MEMORY)
    with Pool(topology) as pool, pool.use(home=0):
        yield Contender(
            allocate=partial(torch.empty, dtype=torch.uint8, device=DEVICE),
            **(what_pool_tells(pool._core) | {"trim": None}),  # torch would keep what it has cached
        )


@contextmanager
def pool_empty() -> Iterator[Contender]:
    """`pool.empty`, which enters and leaves torch's MemPool for each tensor."""
    topology = poolrt.logical(device=DEVICE, cards=1, memory=CARD_MEMORY)
    with Pool(topology) as pool:
        yield Contender(
            allocate=partial(pool.empty, dtype=torch.uint8), **(what_pool_tells(pool._core) | {"trim": None})
        )


@contextmanager
def core_on_gpu() -> Iterator[Contender]:
    """The compiled pool over the CUDA driver, called from Python for plain addresses: no torch."""
    with core_pool(_C.cuda_driver(), parse_nbytes(CARD_MEMORY)) as contender:
        yield contender


@contextmanager
def cupy_pool() -> Iterator[Contender]:
    """MemoryPool of cupy over cudaMalloc."""
    import cupy  # type: ignore[import-not-found, unused-ignore]

    pool = cupy.cuda.MemoryPool()
    yield Contender(allocate=pool.malloc, trim=pool.free_all_blocks, held_nbytes=pool.total_bytes)


@contextmanager
def rmm_pool() -> Iterator[Contender]:
    """RMM's PoolMemoryResource over cudaMalloc, which grows as it must."""
    import rmm  # type: ignore[import-not-found, unused-ignore]

    pool = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), initial_pool_size=0)

    def allocate(nbytes: int) -> rmm.DeviceBuffer:
        return rmm.DeviceBuffer(size=nbytes, mr=pool)

    yield Contender(allocate=allocate, held_nbytes=pool.pool_size)


ON_GPU: dict[str, Opener] = {
    "torch.empty, caching": torch_on_gpu,
    "torch.empty, expandable segments": torch_on_gpu,
    "torch.empty in pool.use()": torch_in_pool,
    "pool.empty()": pool_empty,
    "_C.Pool, addresses": core_on_gpu,
    "cupy MemoryPool": cupy_pool,
    "RMM pool": rmm_pool,
}
