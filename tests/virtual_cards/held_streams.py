"""Streams that are held, so that order is seen without a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import poolrt._C as _C


@contextmanager
def held(*streams: torch.Stream) -> Iterator[None]:
    """What comes into these streams inside is begun when the block ends, all of it at that moment."""
    driver = _C.host_driver()
    for stream in streams:
        driver.stream_hold(stream.stream_id)
    try:
        yield
    finally:
        for stream in streams:
            driver.stream_pass(stream.stream_id)
