"""What discovery asks of each source. Tests answer with machines that never were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from poolrt.topology.facts import Machine


class DriverTable(Protocol):
    """CUDA, as `poolrt._C` fills it from libcuda. Cards are numbered as CUDA shows them to this process."""

    def driver_version(self) -> int:
        """13000 is CUDA 13.0."""

    def device_count(self) -> int:
        """Cards that this process may see."""

    def device_name(self, card: int, /) -> str:
        """The maker's name."""

    def total_memory(self, card: int, /) -> int:
        """Bytes on the card, used or not."""

    def can_access_peer(self, card: int, peer: int, /) -> bool:
        """Whether the driver lets `card` read and write the memory of `peer`."""


class CudaIdentity(Protocol):
    """Which card is behind a CUDA number, and what it can do."""

    def uuid(self, card: int, /) -> str | None:
        """As NVML writes it: "GPU-6968dfc2-..."; None if it cannot be told."""

    def bus_id(self, card: int, /) -> str | None:
        """PCI address as sysfs writes it."""

    def attribute(self, card: int, number: int, /) -> int | None:
        """A CUdevice_attribute by its number."""


class NvmlSource(Protocol):
    """NVML: cards as nvidia-smi numbers them, hidden ones too."""

    def read(self) -> Machine:
        """Cards, pairs and driver; nothing about the host."""


class FileSource(Protocol):
    """Files of the running system, by absolute path. What is not there or may not be read is None, or empty."""

    def text(self, path: str, /) -> str | None:
        """The content of a small file, without the line break at its end."""

    def data(self, path: str, /) -> bytes | None:
        """The content of a small file."""

    def names(self, path: str, /) -> Sequence[str]:
        """What is in a folder, sorted."""

    def real(self, path: str, /) -> str | None:
        """The path without symbolic links."""

    def room(self, path: str, /) -> int | None:
        """Bytes of the file system that a folder is on, used or not."""

    def kernel_log(self) -> str | None:
        """The kernel's messages; most machines show them to root only."""
