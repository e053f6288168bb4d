"""What every test has: seeds, and the check that memory and threads are afterwards where they were before."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import hypothesis
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
hypothesis.settings.register_profile("poolrt", deadline=None)  # tests judge no wall clock: machines are shared
hypothesis.settings.load_profile("poolrt")


@pytest.fixture(autouse=True, scope="module")
def nothing_looked_through_twice() -> None:
    """What is alive before a module's tests stays: to go through all of torch at each `gc.collect` takes long."""
    if any(_bytes_by_card().values()):
        gc.unfreeze()  # what a failed test was in the midst of may be let go by now
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test after which a thread still runs or a virtual card still holds bytes it did not hold before."""
    torch.manual_seed(0)
    threads, bytes_before = set(threading.enumerate()), _bytes_by_card()
    yield
    deadline = time.monotonic() + 2.0
    while (left := _threads_besides(threads)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads still run: {left}"
    while _grown_since(bytes_before) and time.monotonic() < deadline:
        gc.collect()  # takes a third of a second: only where something may be left in a cycle
        time.sleep(0.01)  # what a thread keeps to itself goes when the system ends it, a moment after it was joined
    assert not _grown_since(bytes_before), f"cards hold more bytes than before: {_grown_since(bytes_before)}"


def _threads_besides(threads: set[threading.Thread]) -> list[threading.Thread]:
    """Threads made since by Python; torch's own stay, and show up once they have run a line of Python."""
    return [t for t in threading.enumerate() if t not in threads and not isinstance(t, threading._DummyThread)]


def _grown_since(bytes_before: dict[int, int]) -> dict[int, int]:
    """Bytes more than before, of the cards that hold more."""
    growth = {card: nbytes - bytes_before.get(card, 0) for card, nbytes in _bytes_by_card().items()}
    return {card: nbytes for card, nbytes in growth.items() if nbytes > 0}


def _bytes_by_card() -> dict[int, int]:
    vcard = getattr(torch, "vcard", None)
    if vcard is None:
        return {}
    return {card: vcard.memory_allocated(card) for card in range(vcard.device_count())}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch's operations, as a lane has on a small machine: sums then have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
