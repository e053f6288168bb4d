"""Counts the bytes that operations bring into being: the same figures on the host, on virtual cards and on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRANULE = 512
"""allocators of cards hand out multiples of this many bytes"""


def granular(nbytes: int) -> int:
    """`nbytes` as an allocator counts them."""
    return -(-nbytes // GRANULE) * GRANULE


class _Followed(NamedTuple):
    storage: StorageWeakRef
    nbytes: int
    chapter: int


class MemoryWatch(TorchDispatchMode):
    """While active, follows every storage that an operation returns until it dies. `peak` is above the last `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, _Followed] = {}
        self._foreign: dict[int, StorageWeakRef] = {}
        self.peak = 0
        self.operations = 0
        """that made something new so far: views start no kernel"""
        self.chapter = 0
        """noted of every storage when it comes into being"""

    def mark(self) -> int:
        """Forget the peak; bytes live now."""
        self.peak = self.live_nbytes()
        return self.peak

    def live_nbytes(self) -> int:
        """Bytes of the followed storages that still exist."""
        for key in [key for key, followed in self._live.items() if followed.storage.expired()]:
            del self._live[key]
        return sum(followed.nbytes for followed in self._live.values())

    def chapter_of(self, tensor: Tensor) -> int | None:
        """The chapter in which the storage of `tensor` came into being; None if it came in from outside."""
        followed = self._live.get(tensor.untyped_storage()._cdata)
        return None if followed is None or followed.storage.expired() else followed.chapter

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and follow what it returns."""
        self._meet((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._follow(result)
        return result

    def _meet(self, args: Any) -> None:
        """Storages that come in from outside (weights, the batch) are not counted, nor are views of them."""
        for tensor in tree_leaves(args):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live and storage._cdata not in self._foreign:
                    self._foreign[storage._cdata] = StorageWeakRef(storage)

    def _follow(self, result: Any) -> None:
        fresh = False
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                fresh |= self._add(tensor)
        if fresh:
            self.operations += 1
            self.peak = max(self.peak, self.live_nbytes())

    def _add(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live and not self._live[key].storage.expired():
            return False
        if key in self._foreign:
            if not self._foreign[key].expired():
                return False
            del self._foreign[key]
        self._live[key] = _Followed(StorageWeakRef(storage), granular(storage.nbytes()), self.chapter)
        return True


class SavedBytes:
    """Bytes that autograd keeps from forward to backward: each storage once, weights not at all."""

    def __init__(self, weights: set[int]) -> None:
        self._weights = weights  # addresses of the parameters' and buffers' storages
        self._counted: dict[int, StorageWeakRef] = {}
        self.nbytes = 0

    def has(self, tensor: Tensor) -> bool:
        """Whether the storage of `tensor` is among the counted."""
        known = self._counted.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()

    def count(self, tensor: Tensor) -> None:
        """Add the storage of `tensor` unless it is a weight or was counted already."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights:
            return
        known = self._counted.get(storage._cdata)
        if known is None or known.expired():
            self._counted[storage._cdata] = StorageWeakRef(storage)
            self.nbytes += granular(storage.nbytes())
