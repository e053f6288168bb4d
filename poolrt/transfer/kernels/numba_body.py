"""The copy kernels in Python, as Numba compiles it: the readable twin of csrc/kernels.cu, kernel by kernel.

It takes the same numbers and gives the same bits, but moves an element at a time where CUDA C++ moves 16 bytes. Arrays
are flat. Needs a GPU, or NUMBA_ENABLE_CUDASIM=1 in the environment before Numba is imported.

A kernel is made for a pair of types by a function, as CUDA C++ makes one from a template.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from numba import config, cuda

from poolrt.transfer.kernels.launch import CHUNK_NBYTES, Launch, ManyLaunch
from poolrt.transfer.kernels.numba_numbers import adder, converter
from poolrt.transfer.kernels.walk import Walk

Kernel = Any
"""what cuda.jit makes"""

GROUP_NBYTES = 16


@cuda.jit(device=True)
def locate(walk: Any, pack: int) -> tuple[int, int]:
    """Positions of a pack in target and source. `walk` is what `walk_numbers` gives."""
    dimensions, target, source, extents, target_strides, source_strides = walk
    for dimension in range(dimensions - 1, -1, -1):
        quotient = pack // extents[dimension]
        step = pack - quotient * extents[dimension]
        target += step * target_strides[dimension]
        source += step * source_strides[dimension]
        pack = quotient
    return target, source


def walk_numbers(walk: Walk) -> tuple[Any, ...]:
    """A walk as a kernel takes it; unused dimensions are left out."""
    return (
        len(walk.extents),
        walk.target_start,
        walk.source_start,
        walk.extents,
        walk.target_strides,
        walk.source_strides,
    )


@cache
def copy_strided(source_type: str, target_type: str, items: int) -> Kernel:
    """target[...] = source[...], each number converted."""
    convert = converter(source_type, target_type)

    @cuda.jit
    def kernel(target: Any, source: Any, packs: int, walk: Any) -> None:
        for pack in range(cuda.grid(1), packs, cuda.gridsize(1)):
            to, at = locate(walk, pack)
            for item in range(items):
                target[to + item] = convert(source[at + item])

    return kernel


@cache
def add_strided(source_type: str, common_type: str, target_type: str, items: int) -> Kernel:
    """target[...] += source[...], in the type that torch promotes the two to."""
    from_source, from_target = converter(source_type, common_type), converter(target_type, common_type)
    to_target, add = converter(common_type, target_type), adder(common_type)

    @cuda.jit
    def kernel(target: Any, source: Any, packs: int, walk: Any) -> None:
        for pack in range(cuda.grid(1), packs, cuda.gridsize(1)):
            to, at = locate(walk, pack)
            for item in range(items):
                total = add(from_target(target[to + item]), from_source(source[at + item]))
                target[to + item] = to_target(total)

    return kernel


@cuda.jit(device=True)
def copy_run(
    target: Any, target_offset: int, source: Any, source_offset: int, nbytes: int, thread: int, threads: int
) -> None:
    """The groups of 16 bytes thread, thread + threads, ... of a run; the last one may be shorter."""
    for begin in range(thread * GROUP_NBYTES, nbytes, threads * GROUP_NBYTES):
        end = begin + GROUP_NBYTES
        for byte in range(begin, end if end < nbytes else nbytes):
            target[target_offset + byte] = source[source_offset + byte]


@cuda.jit
def copy_bytes(target: Any, source: Any, nbytes: int) -> None:
    """Bytes as they are."""
    copy_run(target, 0, source, 0, nbytes, cuda.grid(1), cuda.gridsize(1))


@cuda.jit
def copy_many(target: Any, source: Any, table: Any, runs: int, chunks: int) -> None:
    """Many runs of bytes, a chunk of one of them at a time per block; csrc/kernels.cu draws it."""
    for chunk in range(cuda.blockIdx.x, chunks, cuda.gridDim.x):
        run, beyond = 0, runs
        while beyond - run > 1:  # bisection: the last run that begins at this chunk or before
            middle = (run + beyond) // 2
            if table[3 * runs + middle] <= chunk:
                run = middle
            else:
                beyond = middle
        begin = (chunk - table[3 * runs + run]) * CHUNK_NBYTES
        left = table[2 * runs + run] - begin
        nbytes = left if left < CHUNK_NBYTES else CHUNK_NBYTES
        to, at = table[run] + begin, table[runs + run] + begin
        copy_run(target, to, source, at, nbytes, cuda.threadIdx.x, cuda.blockDim.x)


if config.ENABLE_CUDASIM:

    def nap(nap_ns: int) -> None:
        """The simulator has no nanosleep."""
        time.sleep(nap_ns * 1e-9)

else:

    @cuda.jit(device=True)
    def nap(nap_ns: int) -> None:
        """Twice as long at the most."""
        cuda.nanosleep(nap_ns)


@cuda.jit
def hold(outcome: Any, flag: Any, limit_ns: int, nap_ns: int) -> None:
    """Holds its stream until the flag is not 0, or the time is over. Numba has no clock of the card: it counts naps."""
    waited_ns = 0
    while cuda.atomic.add(flag, 0, 0) == 0:  # an atomic always looks at the memory itself
        if waited_ns >= limit_ns:
            outcome[0] = 2
            return
        nap(nap_ns)
        waited_ns += nap_ns
    outcome[0] = 1


def run(launch: Launch, target: Any, source: Any, stream: Any = 0) -> None:
    """Starts one launch. Arrays are flat, of `storage_dtype`, and begin at the launch's addresses."""
    if launch.walk is None:
        copy_bytes[launch.blocks, launch.threads, stream](target, source, launch.count)
        return
    maker = copy_strided if launch.kernel == "copy_strided" else add_strided
    kernel = maker(*launch.types, launch.items)
    kernel[launch.blocks, launch.threads, stream](target, source, launch.count, walk_numbers(launch.walk))


def run_many(launch: ManyLaunch, table: Any, target: Any, source: Any, stream: Any = 0) -> None:
    """Starts a copy of many runs. `table` is the launch's, as int64 on the card; the others are bytes."""
    copy_many[launch.blocks, launch.threads, stream](target, source, table, launch.runs, launch.chunks)
