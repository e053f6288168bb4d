"""Holds a stream until the host lets it go, so that what is measured or tested waits in the queue as a whole."""

from __future__ import annotations

from types import TracebackType

import torch

import poolrt.transfer.kernels.cuda_body as cuda_body  # not `from` the package: that would close a circle
from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.availability import available

_NAP_NS = 1000


class Latch:
    """A closed gate in a stream of a CUDA card.

        with Latch(device):
            ...     # everything that goes to the card's current stream waits
        # and now runs, without the host's pauses between

    The gate is a kernel that looks at a flag in pinned memory. It opens by itself after `limit_s`, so that a host that
    never comes back cannot hang a card. Do not wait for the held stream inside.
    """

    def __init__(self, device: torch.device | str, limit_s: float = 5.0) -> None:
        """`limit_s` is in seconds of the card's clock.

        Raises:
            ConfigurationError: if kernels cannot serve the device.
        """
        self._device = torch.device(device)
        if reason := available(self._device):
            raise ConfigurationError(f"a latch on {self._device} is not to be had: {reason}")
        self._limit_ns = int(limit_s * 1e9)
        self._flag = torch.zeros(1, dtype=torch.int32).pin_memory()
        self._outcome = torch.zeros(1, dtype=torch.int32).pin_memory()
        self._passed = torch.Event(device=self._device)

    def __enter__(self) -> Latch:
        stream = torch.cuda.current_stream(self._device)
        addresses = (self._outcome.data_ptr(), self._flag.data_ptr())
        cuda_body.hold(*addresses, self._limit_ns, _NAP_NS, stream.device_index, stream.cuda_stream)
        self._passed.record(stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flag[0] = 1
        self._passed.synchronize()  # the kernel writes to this object's memory until then

    @property
    def held(self) -> bool:
        """Whether the stream waited to the end, known afterwards; False if the time was over before."""
        return int(self._outcome[0]) == 1
