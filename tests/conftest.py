"""What every test has: seeds, and the check that memory and threads are afterwards where they were before."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test after which a thread still runs or a virtual card still holds bytes it did not hold before."""
    torch.manual_seed(0)
    threads, bytes_before = set(threading.enumerate()), _bytes_by_card()
    yield
    deadline = time.monotonic() + 2.0
    while (left := [t for t in threading.enumerate() if t not in threads]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads still run: {left}"
    gc.collect()
    bytes_after = _bytes_by_card()
    grown = {card: bytes_after[card] - bytes_before.get(card, 0) for card in bytes_after}
    assert all(growth <= 0 for growth in grown.values()), f"cards hold more bytes than before: {grown}"


def _bytes_by_card() -> dict[int, int]:
    vcard = getattr(torch, "vcard", None)
    if vcard is None:
        return {}
    return {card: vcard.memory_allocated(card) for card in range(vcard.device_count())}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch's operations: the same number as a lane has on a small machine, so sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
