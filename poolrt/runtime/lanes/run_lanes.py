"""One thread per lane, for one phase of one step."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from poolrt.runtime.lanes.lane import Lane
from poolrt.runtime.lanes.orders import Orders
from poolrt.runtime.lanes.turnstile import Aborted, Admission, Turnstile


def run_lanes(
    lanes: Sequence[Lane],
    order: Orders,
    body: Callable[[Lane], None],
    threads_per_lane: int,
    after: Sequence[torch.Event] = (),
) -> list[Admission]:
    """Run `body` for every lane at once, through one turnstile; who was on which card when.

    Args:
        lanes: the micro-batches' lanes.
        order: the tickets each card admits, in order.
        body: one phase of one lane's work.
        threads_per_lane: threads for torch's operations in each lane.
        after: what the work of logical cards must come after.

    Raises:
        Exception: the first failure of a lane, itself, when all lanes have ended.
    """
    turnstile = Turnstile(order, len(lanes))
    failures: list[BaseException] = []

    def work(lane: Lane) -> None:
        try:
            torch.set_num_threads(threads_per_lane)
            lane.begin(turnstile, after)
            lane.work(body)
        except Aborted:
            pass
        except BaseException as error:
            failures.append(error)
            turnstile.abort()

    own_threads = torch.get_num_threads()
    threads = [threading.Thread(target=work, args=(lane,), name=f"lane {lane.index}") for lane in lanes]
    _run_all(threads, turnstile)
    torch.set_num_threads(own_threads)  # some libraries keep one number for all threads
    if failures:
        raise _first(failures)
    return turnstile.admissions


def _run_all(threads: Sequence[threading.Thread], turnstile: Turnstile) -> None:
    """Start and await the threads; also after an interrupt, none is left running."""
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for thread in started:
            thread.join()
    except BaseException:
        turnstile.abort()
        for thread in started:
            thread.join()
        raise
    finally:
        await_end(started)


def await_end(threads: Sequence[threading.Thread]) -> None:
    """Wait until the system has ended threads that were joined.

    Until then they hold memory of torch's, and a program that exits at that moment is aborted when one of them asks for
    the interpreter. Gives up after a tenth of a second.
    """
    deadline = time.monotonic() + 0.1
    for thread in threads:
        while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
            time.sleep(20e-6)


def _first(failures: list[BaseException]) -> BaseException:
    failure = failures[0]
    failures.clear()  # the frames of this call hold the list: a cycle would keep the failure's own frames
    if isinstance(failure, torch.OutOfMemoryError):
        traceback.clear_frames(failure.__traceback__)  # their locals hold what fills the card
    return failure
