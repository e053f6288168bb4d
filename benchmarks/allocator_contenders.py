"""The allocators that are compared on the CPU, all behind the same few calls. Those on a GPU: allocator_gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import poolrt
from poolrt import _C
from poolrt.memory.pool import Pool
from poolrt.units import parse_nbytes

CARD_MEMORY = "8GiB"
COUNTED = ("hits", "misses", "driver_calls")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One allocator.

    Attributes:
        allocate: bytes to a block: a tensor, a buffer or an address.
        free: takes an address back; None where the last reference to a block gives it back.
        trim: gives everything cached back to the driver; None where that cannot be asked for.
        held_nbytes: bytes taken from the driver, handed out or not; None where only the process's memory tells.
        counts: hits, misses and driver calls since it was opened; nothing where it does not count.
        address: of a block, where the processor may write there.
    """

    allocate: Callable[[int], Any]
    free: Callable[[Any], None] | None = None
    trim: Callable[[], Any] | None = None
    held_nbytes: Callable[[], int] | None = None
    counts: Callable[[], dict[str, int]] = dict
    address: Callable[[Any], int] | None = None


Opener = Callable[[], AbstractContextManager[Contender]]


@contextmanager
def torch_on_cpu() -> Iterator[Contender]:
    """The CPU's own allocator in torch. Loading the virtual cards would replace it: only in a process without them."""
    yield Contender(
        allocate=partial(torch.empty, dtype=torch.uint8, device=torch.device("cpu")),
        address=torch.Tensor.data_ptr,
    )


@contextmanager
def torch_on_vcard() -> Iterator[Contender]:
    """Tensors on a virtual card, no pool."""
    poolrt.virtual(cards=1, memory=CARD_MEMORY)
    yield Contender(
        allocate=partial(torch.empty, dtype=torch.uint8, device=torch.device("vcard:0")),
        address=torch.Tensor.data_ptr,
    )


@contextmanager
def torch_in_pool() -> Iterator[Contender]:
    """What `torch.empty` makes inside `pool.use()`; entering is not measured."""
    topology = poolrt.virtual(cards=1, memory=CARD_MEMORY)
    with Pool(topology) as pool, pool.use(home=0):
        yield Contender(
            allocate=partial(torch.empty, dtype=torch.uint8, device=torch.device("vcard:0")),
            address=torch.Tensor.data_ptr,
            **what_pool_tells(pool._core),
        )


@contextmanager
def pool_empty() -> Iterator[Contender]:
    """`pool.empty`, which enters and leaves the pool for each tensor."""
    topology = poolrt.virtual(cards=1, memory=CARD_MEMORY)
    with Pool(topology) as pool:
        yield Contender(
            allocate=partial(pool.empty, dtype=torch.uint8),
            address=torch.Tensor.data_ptr,
            **what_pool_tells(pool._core),
        )


@contextmanager
def core_on_host() -> Iterator[Contender]:
    """The compiled pool, called from Python for plain addresses: no torch."""
    nbytes = parse_nbytes(CARD_MEMORY)
    _C.host_driver().configure([nbytes])
    with core_pool(_C.host_driver(), nbytes) as contender:
        yield contender


@contextmanager
def core_pool(driver: _C.Driver, nbytes: int) -> Iterator[Contender]:
    """A compiled pool of `nbytes` on the driver's card 0.

    Raises:
        RuntimeError: at the end, if blocks are left in it.
    """
    core = _C.Pool(driver, [(0, nbytes)])
    yield Contender(allocate=partial(core.allocate, home=0), free=core.free, address=int, **what_pool_tells(core))
    left = core.close()
    if left:
        raise RuntimeError(f"{len(left)} blocks were not freed: {left[:3]}")


def what_pool_tells(core: _C.Pool) -> dict[str, Any]:
    """The fields of a contender that poolrt's pool has an answer for."""

    def counts() -> dict[str, int]:
        now = core.stats()
        return {name: getattr(now, name) for name in COUNTED}

    def held_nbytes() -> int:
        return sum(tier.mapped_nbytes for tier in core.stats().tiers)

    return {"trim": core.trim, "held_nbytes": held_nbytes, "counts": counts}


ON_CPU: dict[str, Opener] = {
    "torch.empty, CPU": torch_on_cpu,
    "torch.empty, vcard": torch_on_vcard,
    "torch.empty in pool.use()": torch_in_pool,
    "pool.empty()": pool_empty,
    "_C.Pool, addresses": core_on_host,
}
