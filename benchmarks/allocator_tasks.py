"""What a contender is asked to do: pairs of an allocation and its free, and a recorded step."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from allocator_contenders import Contender
from allocator_trace import Trace


def time_pairs(contender: Contender, nbytes: int, pairs: int, *, cached: bool) -> dict[str, Any]:
    """Times allocating and freeing a block of `nbytes`, `pairs` times together and again one by one.

    Returns:
        `round_s`: mean seconds of a pair, no clock in between; `single_s`: of each pair, the clock's own time included;
        `counts`: what the contender counted meanwhile, for the pairs of both.
    """
    pair = pair_of(contender, cached=cached)
    pair(nbytes)
    before = contender.counts()
    start = perf_counter()
    for _ in range(pairs):
        pair(nbytes)
    round_s = (perf_counter() - start) / pairs
    single_s = []
    for _ in range(pairs):
        start = perf_counter()
        pair(nbytes)
        single_s.append(perf_counter() - start)
    return {"round_s": round_s, "single_s": single_s, "counts": _since(before, contender)}


def pair_of(contender: Contender, *, cached: bool) -> Callable[[int], Any]:
    """Allocates and frees; without `cached` it also gives the block back to the driver.

    A result that nobody takes is freed at once, so `allocate` alone is a pair where blocks are freed with their last
    reference.
    """
    allocate, free, trim = contender.allocate, contender.free, contender.trim
    if cached:
        return allocate if free is None else lambda nbytes: free(allocate(nbytes))
    if trim is None:
        raise ValueError("this contender cannot be asked to give its cache back: measure it cached only")

    def uncached(nbytes: int) -> None:
        block = allocate(nbytes)
        if free is not None:
            free(block)
        del block
        trim()

    return uncached


class Replay:
    """A contender that serves a recorded step again and again; what stands before the step is allocated once."""

    def __init__(self, contender: Contender, trace: Trace) -> None:
        self._contender = contender
        self._trace = trace
        self._resident_before = resident_nbytes()
        self._standing = [contender.allocate(nbytes) for nbytes in trace.standing]
        for block, nbytes in zip(self._standing, trace.standing, strict=True):
            self._write(block, nbytes)

    def time(self, *, written: bool) -> dict[str, Any]:
        """One step. `written`: every block is written once, as a kernel would, so that its pages must be there.

        Returns:
            `seconds`, and `counts` as far as the contender counts.
        """
        before = self._contender.counts()
        start = perf_counter()
        self._run(self._write if written else None, None)
        return {"seconds": perf_counter() - start, "counts": _since(before, self._contender)}

    def observe(self) -> dict[str, int | float | None]:
        """One written step, looked at after every event.

        Returns:
            In bytes: `peak_live_nbytes`, what is asked for; `peak_resident_nbytes`, how much this process grew since
            before anything was allocated; `peak_held_nbytes`, what the contender had from its driver, None where it
            cannot tell. And `fragmentation`, when most bytes live: the share of what is held, or else resident, that
            no live block asked for.
        """
        seen: list[tuple[int, int | None]] = []
        held_nbytes = self._contender.held_nbytes

        def look() -> None:
            seen.append((resident_nbytes() - self._resident_before, held_nbytes() if held_nbytes else None))

        look()
        self._run(self._write, look)
        resident, held = seen[self._trace.peak_at]
        taken = resident if held is None else held
        return {
            "peak_live_nbytes": self._trace.peak_nbytes,
            "peak_resident_nbytes": max(at[0] for at in seen),
            "peak_held_nbytes": None if held is None else max(at[1] or 0 for at in seen),
            "fragmentation": 1 - self._trace.peak_nbytes / taken if taken else 0.0,
        }

    def close(self) -> None:
        """Frees what stands."""
        if self._contender.free is not None:
            for block in self._standing:
                self._contender.free(block)
        self._standing.clear()

    def _run(self, write: Callable[[Any, int], None] | None, look: Callable[[], None] | None) -> None:
        allocate, free = self._contender.allocate, self._contender.free
        blocks: list[Any] = [None] * self._trace.blocks
        for number, nbytes in self._trace.events:
            if nbytes > 0:
                blocks[number] = allocate(nbytes)
                if write is not None:
                    write(blocks[number], nbytes)
            else:
                if free is not None:
                    free(blocks[number])
                blocks[number] = None
            if look is not None:
                look()

    def _write(self, block: Any, nbytes: int) -> None:
        if self._contender.address is not None:
            ctypes.memset(self._contender.address(block), 1, nbytes)


def resident_nbytes() -> int:
    """Bytes of this process that are in memory, pages of files in memory included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _since(before: dict[str, int], contender: Contender) -> dict[str, int]:
    return {name: value - before[name] for name, value in contender.counts().items()}
