"""Waiting for what threads leave behind."""

from __future__ import annotations

import time
from collections.abc import Callable


def settle(is_settled: Callable[[], bool]) -> None:
    """Wait a little: what a thread keeps to itself goes when the system ends it, a moment after it was joined."""
    deadline = time.monotonic() + 1.0
    while not is_settled() and time.monotonic() < deadline:
        time.sleep(0.001)
