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

def cuda_driver() -> Driver:
    """The CUDA driver of this machine.

    Raises:
        DriverError: if there is none, or it cannot be initialised.
    """

def host_driver() -> HostDriver:
    """The HOST driver of this process."""

def host_table_address() -> int:
    """Where the HOST driver's C table is, for a separately compiled library that charges the same ledgers."""
