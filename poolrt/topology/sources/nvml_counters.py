"""Bytes that cards sent over their NVLinks since the driver was loaded: they show where a copy really went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poolrt.topology.sources.asking import Asker
from poolrt.topology.sources.nvml import open_nvml

_ALL_LINKS = 0xFFFF_FFFF  # UINT_MAX as the scope asks for the sum (nvml.h, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)
_KIB = 1024


class NvlinkCounters:
    """Reads the counters of cards by their UUIDs, over the package nvidia-ml-py or anything with its functions."""

    def __init__(self, library: Any) -> None:
        self._ask = Asker(library)

    def sent_nbytes(self, uuid: str) -> int | None:
        """Payload that a card sent, all its links together; None if it counts none."""
        handle = self._ask("DeviceGetHandleByUUID", uuid)
        if handle is None:
            return None
        (total,) = self._ask.fields(handle, ("NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", _ALL_LINKS))
        if total is not None:
            return total * _KIB
        links = range(self._ask.constant("NVML_NVLINK_MAX_LINKS") or 36)
        by_link = self._ask.fields(handle, *(("NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", link) for link in links))
        if any(count is not None for count in by_link):
            return sum(count or 0 for count in by_link) * _KIB
        newest = self._ask.fields(handle, *(("NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES", link) for link in links))
        return sum(count or 0 for count in newest) if any(count is not None for count in newest) else None


@contextmanager
def nvlink_counters(library: Any = None) -> Iterator[NvlinkCounters | None]:
    """The counters of this machine while the block lasts; None where NVML does not answer."""
    nvml = library or open_nvml()
    if nvml is None:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield NvlinkCounters(nvml)
    finally:
        nvml.nvmlShutdown()
