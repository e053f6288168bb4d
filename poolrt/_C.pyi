"""The driver tables of poolrt: CUDA (from libcuda.so.1, when it is there) and HOST (cards made of host memory).

Every failed call raises `poolrt.errors.DriverError` with two more attributes: `code` (int, numbered as CUresult) and
`name` (str, such as "OUT_OF_MEMORY").
"""

from collections.abc import Sequence
from typing import Final

MAX_CARDS: Final[int]
"""The most cards the HOST driver can have."""

HOST_MEMORY: Final[int]
"""In place of a card: the memory of the host."""

class Driver:
    """What every driver answers. Cards are numbered from 0."""

    @property
    def name(self) -> str:
        """Which driver it is: "CUDA" or "HOST"."""
    def driver_version(self) -> int:
        """The version as the driver numbers it: 13000 is CUDA 13.0."""
    def device_count(self) -> int: ...
    def device_name(self, card: int) -> str: ...
    def total_memory(self, card: int) -> int:
        """Bytes of memory on `card`."""
    def memory_info(self, card: int) -> tuple[int, int]:
        """(free, total) bytes on `card`."""
    def granularity(self, place: int) -> int:
        """Bytes of which every size and address of pages on `place` (a card, or HOST_MEMORY) is a multiple."""
    def can_access_peer(self, card: int, peer: int) -> bool:
        """What the driver claims; only a write that was read back proves it."""

class Ledger:
    """What one card of the HOST driver has granted, blocks and pages alike; of the host, pages only."""

    @property
    def used_nbytes(self) -> int: ...
    @property
    def peak_nbytes(self) -> int: ...
    @property
    def capacity_nbytes(self) -> int: ...
    @property
    def allocation_count(self) -> int: ...
    @property
    def refusal_count(self) -> int: ...

class PageState:
    """What was made of pages, ranges, events and streams, and not given back yet."""

    @property
    def handle_count(self) -> int: ...
    @property
    def mapping_count(self) -> int: ...
    @property
    def mapped_nbytes(self) -> int: ...
    @property
    def reserved_nbytes(self) -> int: ...
    @property
    def event_count(self) -> int: ...
    @property
    def stream_count(self) -> int: ...

class HostDriver(Driver):
    """Cards made of host memory, with a ledger each and a peer matrix. All objects share one machine."""

    def configure(self, capacities: Sequence[int]) -> None:
        """Have one card per capacity (bytes), 1 to MAX_CARDS, all reaching each other, and a host without limit.

        Blocks and pages in use stay valid.
        """
    def set_capacity(self, card: int, nbytes: int) -> None:
        """Change one card's capacity; below what is used, nothing more is granted."""
    def set_peer(self, card: int, peer: int, possible: bool) -> None:
        """Say whether `card` can reach the memory of `peer` (one direction)."""
    def memory_allocate(self, card: int, nbytes: int) -> int:
        """The address of a new block, aligned to 64 bytes and charged to `card` in steps of 512 bytes."""
    def memory_free(self, address: int) -> None: ...
    def ledger(self, card: int = HOST_MEMORY) -> Ledger: ...
    def reset_peak(self, card: int = HOST_MEMORY) -> None: ...
    def set_host_capacity(self, nbytes: int | None) -> None:
        """Limit the bytes of pages on the host; None takes the limit away."""
    def page_state(self) -> PageState: ...
    def stream_create(self, card: int) -> int:
        """A new stream of `card`, as a handle."""
    def default_stream(self, card: int) -> int:
        """The stream that stands for none being named, as a handle that can be held."""
    def stream_hold(self, stream: int) -> None:
        """From here on work is pending: events recorded later have not passed until `stream_pass`."""
    def stream_pass(self, stream: int) -> None:
        """All pending work is done."""
    def stream_destroy(self, stream: int) -> None: ...
    def calls(self) -> int:
        """How many calls to pages, ranges, access, events, drain and copy there have been in this process."""
    def set_fault(self, at_call: int, status: int = 0, delay_us: int = 0, count: int = 1) -> None:
        """Make `count` of those calls go wrong, from the `at_call`-th from now on (1 is the next one).

        Each returns `status` and does nothing (0: it does what was asked), `delay_us` microseconds late.
        """
    def clear_fault(self) -> None: ...

LINK_SOUND: Final[int]
LINK_LIES: Final[int]
LINK_DIES: Final[int]
"""What can be wrong with a link of the HOST driver."""

class LinkState:
    """What a link of the HOST driver has carried since the cards were configured, and whether it is alive."""

    @property
    def copies(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def up(self) -> bool: ...

def link_set_model(source: int, target: int, bytes_per_s: float, latency_s: float = 0.0) -> None:
    """Let copies from `source` to `target` (cards, or HOST_MEMORY) take their time; 0 bytes per second: at once."""

def link_set_fault(
    source: int,
    target: int,
    kind: int,
    at_byte: int | None = None,
    at_least_nbytes: int = 0,
    after_copies: int | None = None,
    after_nbytes: int | None = None,
) -> None:
    """Make a link lie or die, or mend it (LINK_SOUND)."""

def link_state(source: int, target: int) -> LinkState: ...
def copies_take_time(source: int, target: int) -> bool:
    """Whether a link from card `source` to card `target`, or on the way through the host, has a model."""

def cuda_driver() -> Driver:
    """The CUDA driver of this machine.

    Raises:
        DriverError: if there is none, or it cannot be initialised.
    """

def host_driver() -> HostDriver:
    """The HOST driver of this process."""

def host_table_address() -> int:
    """Where the HOST driver's C table is, for a separately compiled library that charges the same ledgers."""

ALLOCATOR_SLOTS: Final[int]
"""How many function pairs `poolrt_malloc_<slot>`, `poolrt_free_<slot>` this library exports for torch."""

class TierUse:
    """What one place of a pool may hold and holds, in bytes."""

    @property
    def place(self) -> int | None:
        """A card of the pool; None is the host."""
    @property
    def limit_nbytes(self) -> int: ...
    @property
    def mapped_nbytes(self) -> int: ...
    @property
    def peak_nbytes(self) -> int: ...

class PoolStats:
    """A pool at one moment: mapped over all tiers == live + cached + deferred, in bytes."""

    @property
    def tiers(self) -> list[TierUse]:
        """The cards in order, then the host."""
    @property
    def live_nbytes(self) -> int:
        """Handed out, as rounded."""
    @property
    def cached_nbytes(self) -> int:
        """Mapped and free."""
    @property
    def deferred_nbytes(self) -> int:
        """Given back, while streams may still use it."""
    @property
    def requested_nbytes(self) -> int:
        """Of the live blocks, as asked for."""
    @property
    def spilled_nbytes(self) -> int:
        """Of the live blocks, not on their home."""
    @property
    def condemned_nbytes(self) -> int:
        """Of what is cached: the driver failed to take it back; the next trim tries again."""
    @property
    def largest_free_nbytes(self) -> int: ...
    @property
    def peak_live_nbytes(self) -> int: ...
    @property
    def live_blocks(self) -> int: ...
    @property
    def hits(self) -> int:
        """Requests served from what was mapped already."""
    @property
    def misses(self) -> int:
        """Requests that needed a new segment."""
    @property
    def refusals(self) -> int:
        """Requests for which there was not enough room anywhere."""
    @property
    def evictions(self) -> int:
        """Cached segments given back to the driver."""
    @property
    def driver_calls(self) -> int: ...
    @property
    def lost_handles(self) -> int:
        """Driver resources that could not be given back even by a destructor; 0 unless the driver is broken."""
    @property
    def fragmentation(self) -> float:
        """1 - largest free piece / cached; 0 where nothing is cached."""

class Pool:
    """Memory of several cards and the host in one: a block is one address range, whatever its pages lie on.

    Cards are numbered as in `cards`, a list of (ordinal of the driver, limit in bytes); two may share an ordinal. The
    host tier is off at 0 bytes. A segment is made of extents of at most `chunk_nbytes`; `cache_limit_nbytes` (None: no
    limit) bounds what is kept mapped for later; `peers` names for each card the others, nearest first (by index).
    Blocks outlive the object: their memory stays until the last is freed. No method holds the interpreter lock.
    """

    def __init__(
        self,
        driver: Driver,
        cards: Sequence[tuple[int, int]],
        host_limit_nbytes: int = 0,
        chunk_nbytes: int = 64 << 20,
        cache_limit_nbytes: int | None = None,
        peers: Sequence[Sequence[int]] | None = None,
    ) -> None: ...
    @property
    def number(self) -> int:
        """Counts the pools of this process, from 1."""
    def allocate(self, nbytes: int, home: int, stream: int = 0) -> int:
        """The address of a new block of `nbytes`, as near to card `home` as there is room; 0 for 0 bytes.

        `stream` is where it will be used first: memory last used on that very stream is handed out without waiting.
        DriverError with the code 2 (OUT_OF_MEMORY) tells the bytes by tier.
        """
    def free(self, address: int, streams: Sequence[int | tuple[int, int]] = ()) -> None:
        """Give up one ownership; with the last one the memory is free once `streams` have come this far.

        A stream is one of the block's home, or (card, stream); 0 is the default stream.
        """
    def retain(self, address: int) -> None:
        """One more owner."""
    def find(self, address: int) -> tuple[int, int, int]:
        """(address, bytes asked for, home) of the live block that `address` lies in."""
    def extents(self, address: int) -> list[tuple[int | None, int]]:
        """(card, or None for the host; bytes) of the block that `address` lies in, in address order."""
    def home(self, address: int) -> int: ...
    def move(self, address: int, home: int) -> None:
        """Put a block's bytes on other pages, as near to `home` as there is room; its addresses stay.

        Nobody may use the block meanwhile. Refused (801, NOT_SUPPORTED) for a small block that shares its segment.
        """
    def stats(self) -> PoolStats: ...
    def live(self) -> list[tuple[int, int, int]]:
        """(address, bytes asked for, home) of every live block, by address."""
    def trim(self) -> int:
        """Give everything cached back to the driver; the bytes given back."""
    def set_limit(self, place: int | None, nbytes: int) -> None:
        """Change the limit of a card, or of the host (None); below what is mapped, nothing more is granted."""
    def set_cache_limit(self, nbytes: int | None) -> None: ...
    def close(self) -> list[tuple[int, int, int]]:
        """Give everything back and grant nothing more. While blocks live nothing is done and they are returned."""
    def audit(self) -> str:
        """Counts everything anew; the first thing that does not add up, or "". For tests."""

def enter_pool(pool: Pool, home: int | None) -> int:
    """From here on this thread's allocations on virtual cards of the pool come from it; a token for leave_pool.

    `home` is where all of them go; None: the card that is asked for.
    """

def leave_pool(token: int) -> None:
    """Leave the pool that this thread entered last."""

def register_pair(slot: int, pool: Pool, home: int) -> None:
    """Let the exported functions of `slot` allocate from `pool` for its card `home`."""

def unregister_pair(slot: int) -> None:
    """Free a slot; what was allocated through it may still be freed through it."""

def extents_at(address: int, nbytes: int) -> list[tuple[int | None, int]]:
    """(ordinal, or None for the host; bytes) of the places where these bytes lie, in order; empty outside of pools."""

def pools_in_use() -> bool:
    """Whether any pool has live blocks, or a thread is inside one."""

def pool_table_address() -> int:
    """Where the pools' C table is, for a separately compiled library whose tensors may lie in them."""
