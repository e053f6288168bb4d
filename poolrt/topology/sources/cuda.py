"""What CUDA tells this process: its cards in its own order, and which of them may reach each other."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

from poolrt.topology.sources.protocols import CudaIdentity, DriverTable

# CUdevice_attribute, CUDA driver API reference
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _VIRTUAL_MEMORY = 75, 76, 102


@dataclass(frozen=True, kw_only=True)
class CudaCard:
    """One card as CUDA shows it."""

    index: int
    """CUDA's number"""
    name: str
    memory_bytes: int
    uuid: str | None
    bus_id: str | None
    compute_capability: tuple[int, int] | None
    mapped_memory: bool | None


@dataclass(frozen=True, kw_only=True)
class CudaReading:
    """All that CUDA tells; no cards and an error if it does not answer."""

    cards: tuple[CudaCard, ...] = ()
    peers: Mapping[tuple[int, int], bool] = field(default_factory=dict)
    version: tuple[int, int] | None = None
    error: str | None = None
    """the name of the status with which CUDA refused: "CUDA_ERROR_SYSTEM_NOT_READY" """


def read_cuda(driver: DriverTable, identity: CudaIdentity | None) -> CudaReading:
    """Ask CUDA for everything.

    Raises:
        DriverError: if the driver fails at a question about a card that it has.
    """
    count = driver.device_count()
    version = driver.driver_version()
    return CudaReading(
        cards=tuple(_card(driver, identity, index) for index in range(count)),
        peers={pair: driver.can_access_peer(*pair) for pair in permutations(range(count), 2)},
        version=(version // 1000, version % 1000 // 10),
    )


def _card(driver: DriverTable, identity: CudaIdentity | None, index: int) -> CudaCard:
    major = identity.attribute(index, _CAPABILITY_MAJOR) if identity else None
    minor = identity.attribute(index, _CAPABILITY_MINOR) if identity else None
    mapped = identity.attribute(index, _VIRTUAL_MEMORY) if identity else None
    return CudaCard(
        index=index,
        name=driver.device_name(index),
        memory_bytes=driver.total_memory(index),
        uuid=identity.uuid(index) if identity else None,
        bus_id=identity.bus_id(index) if identity else None,
        compute_capability=None if major is None or minor is None else (major, minor),
        mapped_memory=None if mapped is None else bool(mapped),
    )


class _Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 16)]


class LibraryIdentity:
    """A CudaIdentity from libcuda itself, for what the driver table does not hold.

    Signatures are those of the CUDA driver API reference; a function that an old driver lacks answers None.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @classmethod
    def open(cls) -> LibraryIdentity | None:
        """The library that the driver table uses too; None if there is none."""
        try:
            return cls(ctypes.CDLL("libcuda.so.1"))
        except OSError:
            return None

    def uuid(self, card: int) -> str | None:
        """As NVML writes it: "GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9"; None if the driver does not tell."""
        found = _Uuid()
        if not self._call("cuDeviceGetUuid_v2", ctypes.byref(found), self._device(card)):
            return None
        text = bytes(found.bytes).hex()
        return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def bus_id(self, card: int) -> str | None:
        """PCI address as sysfs writes it; None if the driver does not tell."""
        text = ctypes.create_string_buffer(32)
        found = self._call("cuDeviceGetPCIBusId", text, ctypes.c_int(len(text)), self._device(card))
        return text.value.decode().lower() if found else None

    def attribute(self, card: int, number: int) -> int | None:
        """A CUdevice_attribute by its number; None if this driver does not know it."""
        value = ctypes.c_int()
        found = self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), self._device(card))
        return value.value if found else None

    def _device(self, card: int) -> ctypes.c_int:
        device = ctypes.c_int(-1)
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(card))
        return device

    def _call(self, name: str, *arguments: object) -> bool:
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == 0
