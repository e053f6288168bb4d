"""How torch's own allocations are led into a pool for a while.

    virtual cards   the cards' allocator asks, at each allocation, which pool this thread is in
    CUDA            one torch MemPool per home card, over a pair of C functions that _C exports (torch's documentation,
                    "Using custom memory allocators for CUDA"); torch hands such a pair nothing but the device's
                    number, so each (pool, home) has a pair of its own

Both hold for the calling thread only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import ConfigurationError
from poolrt.topology.topology import Card


class TorchHook(Protocol):
    """Leads this thread's allocations on the pool's cards into the pool."""

    def use(self, home: int | None) -> AbstractContextManager[None]:
        """For a while; `home` None lets each allocation's own card be the home."""

    def close(self) -> None:
        """Give back what torch keeps in reserve."""


class VirtualHook:
    """For virtual cards."""

    def __init__(self, core: _C.Pool) -> None:
        self._core = core

    def use(self, home: int | None) -> AbstractContextManager[None]:
        """See TorchHook."""
        return _Inside(self._core, home)

    def close(self) -> None:
        """Nothing is kept."""


class _Inside:
    """A class of its own: a generator would take as long as the allocation itself."""

    __slots__ = ("_core", "_home", "_token")

    def __init__(self, core: _C.Pool, home: int | None) -> None:
        self._core, self._home = core, home

    def __enter__(self) -> None:
        self._token = _C.enter_pool(self._core, self._home)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        _C.leave_pool(self._token)


class CudaHook:
    """For GPUs, whole or shared by logical cards."""

    def __init__(self, core: _C.Pool, cards: Sequence[Card]) -> None:
        self._devices = [torch.device(card.device) for card in cards]
        self._pairs = [_Pair(core, home) for home in range(len(cards))]

    @contextmanager
    def use(self, home: int | None) -> Iterator[None]:
        """See TorchHook.

        Raises:
            ConfigurationError: if no home is named and two cards share a device.
        """
        homes = self._homes() if home is None else [home]
        with ExitStack() as stack:
            for card in homes:
                stack.enter_context(torch.cuda.use_mem_pool(self._pairs[card].memory, self._devices[card]))
            yield

    def _homes(self) -> list[int]:
        if len(set(self._devices)) < len(self._devices):
            raise ConfigurationError(f"several cards of this pool share a device ({self._devices[0]}): name the home")
        return list(range(len(self._devices)))

    def close(self) -> None:
        """See TorchHook."""
        for pair in self._pairs:
            pair.close()


_free_slots = set(range(_C.ALLOCATOR_SLOTS))
_slots_lock = threading.Lock()


class _Pair:
    """One exported pair of functions and torch's MemPool over it."""

    def __init__(self, core: _C.Pool, home: int) -> None:
        with _slots_lock:
            if not _free_slots:
                raise ConfigurationError(
                    f"all {_C.ALLOCATOR_SLOTS} allocators for CUDA pools are in use, one per pool and card: close() a "
                    "pool"
                )
            self._slot = _free_slots.pop()
        _C.register_pair(self._slot, core, home)
        names = (f"poolrt_malloc_{self._slot}", f"poolrt_free_{self._slot}")
        self._allocator = torch.cuda.memory.CUDAPluggableAllocator(_C.__file__, *names)
        self.memory: Any = torch.cuda.MemPool(self._allocator.allocator())

    def close(self) -> None:
        if self.memory is None:
            return
        self.memory = None  # its last reference: torch gives the segments it kept back through the pair
        _C.unregister_pair(self._slot)
        with _slots_lock:
            _free_slots.add(self._slot)
