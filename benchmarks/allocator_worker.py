"""A contender in a process of its own: allocators replace one another in torch, and each is to have a heap to itself.

parent ---- time_pairs, 2 MiB ----> contender A     waits, costing nothing, until it is asked
       <--------- seconds ---------
       ---- time_pairs, 2 MiB ----> contender B
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from allocator_contenders import ON_CPU, Contender
from allocator_gpu import ON_GPU
from allocator_tasks import Replay, time_pairs
from allocator_trace import Trace

ANSWER_LIMIT_S = 600.0


class Worker:
    """One process with one contender open in it.

    Args:
        name: in ON_CPU or ON_GPU.
        cuda: which of them.
        environment: variables that the process is to find set.
    """

    def __init__(self, name: str, *, cuda: bool, environment: Mapping[str, str]) -> None:
        self.name = name
        self._executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with _set(environment):
            self._opened = self._executor.submit(_open, name, cuda)  # the process starts here

    def missing(self) -> str | None:
        """Why the contender cannot be had on this machine; None if it is open."""
        reason: str | None = self._opened.result(ANSWER_LIMIT_S)
        return reason

    def time_pairs(self, nbytes: int, pairs: int, *, cached: bool) -> dict[str, Any]:
        """See allocator_tasks."""
        return self._ask(_time_pairs, nbytes, pairs, cached)

    def begin(self, trace: Trace) -> None:
        """Allocates what stands before the step."""
        self._ask(_begin, trace)

    def replay(self, *, written: bool) -> dict[str, Any]:
        """See Replay.time."""
        return self._ask(_replay, written)

    def observe(self) -> dict[str, Any]:
        """See Replay.observe."""
        return self._ask(_observe)

    def trims(self) -> bool:
        """Whether the contender can be told to give its cache back."""
        return self._ask(_trims)

    def _ask(self, task: Callable[..., Any], *arguments: Any) -> Any:
        return self._executor.submit(task, *arguments).result(ANSWER_LIMIT_S)

    def close(self) -> None:
        """Closes the contender, which complains about blocks left, and ends the process."""
        try:
            if self.missing() is None:
                self._ask(_close)
        finally:
            self._executor.shutdown()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in the worker's process


class _Here:
    """What this process has open."""

    stack = ExitStack()
    contender: Contender
    replay: Replay


def _open(name: str, cuda: bool) -> str | None:
    try:
        opener = (ON_GPU if cuda else ON_CPU)[name]
        _Here.contender = _Here.stack.enter_context(opener())
    except ImportError as error:
        return str(error)
    return None


def _close() -> None:
    _Here.stack.close()


def _trims() -> bool:
    return _Here.contender.trim is not None


def _time_pairs(nbytes: int, pairs: int, cached: bool) -> dict[str, Any]:
    return time_pairs(_Here.contender, nbytes, pairs, cached=cached)


def _begin(trace: Trace) -> None:
    _Here.replay = Replay(_Here.contender, trace)
    _Here.stack.callback(_Here.replay.close)


def _replay(written: bool) -> dict[str, Any]:
    return _Here.replay.time(written=written)


def _observe() -> dict[str, Any]:
    return _Here.replay.observe()
