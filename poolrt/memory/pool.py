"""One memory over several cards and, where asked for, the host.

    with poolrt.Pool(topology, host_memory="8GiB") as pool:
        t = pool.empty((25 << 20,), dtype=torch.float32, home=0)     # 100 MiB on cards of 64 MiB
        pool.extents(t)                                              # [Extent(0, 67108864), Extent(1, 37748736)]

    range of addresses:   | pages of card 0 (home) | pages of card 1 (peer) | pages of the host |

A tensor's pages come from its home card first, then from the peers that card reaches, then from the host. Whatever
lies where, it is an ordinary tensor of its home's device.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import ConfigurationError, DriverError, PoolError
from poolrt.memory.extent import Extent, PoolStats, TierStats, clipped
from poolrt.memory.torch_hook import CudaHook, TorchHook, VirtualHook
from poolrt.topology.route import reachable_peers
from poolrt.topology.topology import Topology
from poolrt.units import format_nbytes, parse_nbytes

OUT_OF_MEMORY = 2
"""the driver's status; see csrc/driver.hpp"""
NAMED_TENSORS = 5
"""how many tensors an error lists"""


class Pool:
    """Memory on the cards of `topology`, and `host_memory` bytes of the host's.

    Args:
        topology: virtual cards, GPUs or logical cards.
        host_memory: how much of the host's memory may be used, in bytes or text such as "8GiB"; 0 for none.
        limits: for each card, the most the pool may take there; all of its memory by default.

    Raises:
        ConfigurationError: if the cards have no memory to give (recorded boxes), or the limits are not one per card.
        DriverError: if the driver refuses.
    """

    def __init__(
        self, topology: Topology, host_memory: int | str = 0, *, limits: Sequence[int | str] | None = None
    ) -> None:
        _check(topology, limits)
        self.topology = topology = self._usable(topology)
        self.devices = tuple(torch.device(card.device) for card in topology.cards)
        sizes = [_size(limit) for limit in limits] if limits else [card.memory_bytes for card in topology.cards]
        virtual = self.devices[0].type == "vcard"
        driver = _C.host_driver() if virtual else _C.cuda_driver()
        ordinals = [device.index or 0 for device in self.devices]
        self._core = _C.Pool(
            driver,
            list(zip(ordinals, sizes, strict=True)),
            host_limit_nbytes=_size(host_memory),
            peers=[reachable_peers(topology, card) for card in range(len(topology))],
        )
        self._hook: TorchHook = VirtualHook(self._core) if virtual else CudaHook(self._core, topology.cards)
        self._closed = False
        weakref.finalize(self, self._hook.close).atexit = False  # tensors may outlive the pool; what torch keeps not

    def _usable(self, topology: Topology) -> Topology:
        """Those of the topology's links that tensors may lie across."""
        return topology

    # ---- tensors

    def empty(self, *shape: int | Sequence[int], dtype: torch.dtype | None = None, home: int = 0) -> Tensor:
        """A tensor of `shape` on card `home`'s device, its values not set.

        Args:
            shape: sizes, one by one or as one sequence.
            dtype: torch's default if None.
            home: index of the card.

        Raises:
            torch.OutOfMemoryError: if there is no room; the text tells what every place holds.
        """
        with self.use(home=home):
            try:
                return torch.empty(_shape(shape), dtype=dtype, device=self.devices[home])
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(f"{str(error).splitlines()[0]} The pool: {self.stats()}") from None

    def zeros(self, *shape: int | Sequence[int], dtype: torch.dtype | None = None, home: int = 0) -> Tensor:
        """As `empty`, filled with 0."""
        return self.empty(*shape, dtype=dtype, home=home).zero_()

    def full(self, shape: Sequence[int], value: float, *, dtype: torch.dtype | None = None, home: int = 0) -> Tensor:
        """As `empty`, filled with `value`."""
        return self.empty(*shape, dtype=dtype, home=home).fill_(value)

    def like(self, tensor: Tensor, *, home: int = 0) -> Tensor:
        """A copy of `tensor` in the pool; it needs no gradient."""
        return self.empty(*tensor.shape, dtype=tensor.dtype, home=home).copy_(tensor.detach())

    def use(self, home: int | None = None) -> AbstractContextManager[None]:
        """What this thread allocates on the pool's cards meanwhile comes from the pool.

        Args:
            home: the card whose allocations are meant; None means every card's, each at home on its own.

        Raises:
            ConfigurationError: if there is no such card.
            PoolError: if the pool is closed.
        """
        if self._closed:
            raise PoolError("the pool is closed; make a new one")
        if home is not None:
            self._check_card(home)
        return self._hook.use(home)

    def extents(self, tensor: Tensor) -> list[Extent]:
        """Where the bytes of `tensor`'s storage lie, in the order of their addresses.

        Raises:
            PoolError: if they are not this pool's.
        """
        storage = tensor.untyped_storage()
        start = self._block_of(tensor)
        extents = (Extent(place, nbytes) for place, nbytes in self._core.extents(start))
        return clipped(extents, storage.data_ptr() - start, storage.nbytes())

    def move(self, tensor: Tensor, home: int) -> None:
        """Bring the pages of `tensor` home to card `home`, as far as there is room there.

        The tensor keeps its addresses, its device and its values; views and whoever shares the storage move with it. On
        an error nothing has moved.

        Raises:
            PoolError: if the tensor is not this pool's, or shares its pages with other small tensors.
            torch.OutOfMemoryError: if no place has room for the new pages.
        """
        self._check_card(home)
        start = self._block_of(tensor)
        try:
            self._core.move(start, home)
        except DriverError as error:
            if error.code == OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(str(error)) from None
            raise PoolError(f"the pages of {_described(tensor)} stay where they are: {error}") from error

    def _block_of(self, tensor: Tensor) -> int:
        try:
            start, _nbytes, _home = self._core.find(tensor.untyped_storage().data_ptr())
        except DriverError:
            raise PoolError(
                f"{_described(tensor)} is not in this pool; make it with pool.empty() or in pool.use()"
            ) from None
        return start

    # ---- the pool

    def stats(self) -> PoolStats:
        """What it holds now; sums agree to the byte."""
        now = self._core.stats()
        tiers = tuple(
            TierStats(
                card=tier.place,
                limit_nbytes=tier.limit_nbytes,
                mapped_nbytes=tier.mapped_nbytes,
                peak_mapped_nbytes=tier.peak_nbytes,
            )
            for tier in now.tiers
        )
        names = [name for name in PoolStats.__dataclass_fields__ if name != "tiers"]
        return PoolStats(tiers=tiers, **{name: getattr(now, name) for name in names})

    def trim(self) -> int:
        """Give everything that is cached back to the cards; how many bytes."""
        return self._core.trim()

    def set_limit(self, card: int | None, nbytes: int) -> None:
        """Change how much the pool may take from `card`, or from the host for None. Below what it has: no more.

        Raises:
            ConfigurationError: if there is no such card.
            DriverError: if the driver cannot give the host's memory to cards.
        """
        if card is not None:
            self._check_card(card)
        self._core.set_limit(card, nbytes)

    def close(self) -> None:
        """Give everything back. A closed pool hands out nothing more.

        Raises:
            PoolError: while tensors live in it; it names them, and the pool stays open.
        """
        if self._closed:
            return
        live = self._core.live()
        if live:
            raise PoolError(_still_in_use(live))
        self._hook.close()
        self._core.close()
        self._closed = True

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _check_card(self, home: int) -> None:
        if not 0 <= home < len(self.topology):
            raise ConfigurationError(f"there is no card {home}; this pool has cards 0 to {len(self.topology) - 1}")


def _check(topology: Topology, limits: Sequence[int | str] | None) -> None:
    """See that a pool can be made of this."""
    kinds = {torch.device(card.device).type for card in topology.cards if card.kind != "recorded"}
    if len(kinds) != 1 or any(card.kind == "recorded" for card in topology.cards):
        found = sorted({card.kind for card in topology.cards})
        raise ConfigurationError(f"a pool needs virtual cards, or GPUs and shares of them; these are {found}")
    if limits is not None and len(limits) != len(topology):
        raise ConfigurationError(f"{len(topology)} cards need as many limits, got {len(limits)}: {list(limits)}")


def _size(size: int | str) -> int:
    return 0 if size == 0 else parse_nbytes(size)


def _shape(shape: tuple[int | Sequence[int], ...]) -> list[int]:
    sizes: list[int] = []
    for part in shape:
        sizes += [part] if isinstance(part, int) else part
    return sizes


def _described(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"


def _still_in_use(live: Sequence[tuple[int, int, int]]) -> str:
    """Names the tensors whose memory it is, as far as Python knows them."""
    blocks = {start: nbytes for start, nbytes, _home in live}
    owners: dict[int, str] = {}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), Tensor) and _address(candidate) in blocks:
            owners.setdefault(_address(candidate), _described(candidate))
    named = list(owners.values())
    shown = "; ".join(named[:NAMED_TENSORS])
    if len(named) > NAMED_TENSORS:
        shown += f"; and {len(named) - NAMED_TENSORS} more"
    return (
        f"{len(blocks)} blocks of this pool, {format_nbytes(math.fsum(blocks.values()))}, are still in use"
        + (f" by {shown}" if named else "")
        + ": let go of them (del, or leave their scope), then close() again"
    )


def _address(tensor: Any) -> int:
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # sparse, functional and meta tensors have no storage to speak of
        return 0
