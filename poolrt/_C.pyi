"""The driver tables of poolrt: CUDA (from libcuda.so.1, when it is there) and HOST (cards made of host memory).

Every failed call raises `poolrt.errors.DriverError` with two more attributes: `code` (int, numbered as CUresult) and
`name` (str, such as "OUT_OF_MEMORY").
"""

from collections.abc import Sequence
from typing import Final

MAX_CARDS: Final[int]
"""The most cards the HOST driver can have."""

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
    def can_access_peer(self, card: int, peer: int) -> bool:
        """What the driver claims; only a write that was read back proves it."""

class Ledger:
    """What one card of the HOST driver has granted."""

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

class HostDriver(Driver):
    """Cards made of host memory, with a ledger each and a peer matrix. All objects share one machine."""

    def configure(self, capacities: Sequence[int]) -> None:
        """Have one card per capacity (bytes), 1 to MAX_CARDS, all reaching each other; blocks in use stay valid."""
    def set_capacity(self, card: int, nbytes: int) -> None:
        """Change one card's capacity; below what is used, nothing more is granted."""
    def set_peer(self, card: int, peer: int, possible: bool) -> None:
        """Say whether `card` can reach the memory of `peer` (one direction)."""
    def memory_allocate(self, card: int, nbytes: int) -> int:
        """The address of a new block, aligned to 64 bytes and charged to `card` in steps of 512 bytes."""
    def memory_free(self, address: int) -> None: ...
    def ledger(self, card: int) -> Ledger: ...
    def reset_peak(self, card: int) -> None: ...

def cuda_driver() -> Driver:
    """The CUDA driver of this machine.

    Raises:
        DriverError: if there is none, or it cannot be initialised.
    """

def host_driver() -> HostDriver:
    """The HOST driver of this process."""

def host_table_address() -> int:
    """Where the HOST driver's C table is, for a separately compiled library that charges the same ledgers."""
