"""The copy kernels in CUDA C++ (csrc/kernels.cu), compiled by cupy through NVRTC at first use and kept in cupy's cache.

One kernel for one combination of types is compiled when a card first needs it: some tenths of a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy

from poolrt.transfer.kernels.launch import Launch, ManyLaunch
from poolrt.transfer.kernels.source import kernel_source
from poolrt.transfer.kernels.walk import MOST_DIMENSIONS, Walk

WALK = numpy.dtype(
    [
        ("dimensions", numpy.int64),
        ("target_start", numpy.int64),
        ("source_start", numpy.int64),
        ("extents", numpy.int64, MOST_DIMENSIONS),
        ("target_strides", numpy.int64, MOST_DIMENSIONS),
        ("source_strides", numpy.int64, MOST_DIMENSIONS),
    ]
)
"""struct Walk of csrc/kernels.cu"""
OPTIONS = ("-std=c++17",)


def expression(launch: Launch) -> str:
    """The kernel's name as C++ writes it: copy_strided<float32, bfloat16, 4, int32>."""
    if launch.walk is None:
        return launch.kernel
    index = "int64" if launch.wide else "int32"
    return f"{launch.kernel}<{', '.join((*launch.types, str(launch.items), index))}>"


def walk_struct(walk: Walk) -> numpy.ndarray[Any, Any]:
    """A walk as the kernel takes it, by value: an array of one `WALK`."""
    struct = numpy.zeros(1, WALK)
    rank = len(walk.extents)
    struct["dimensions"] = rank
    struct["target_start"], struct["source_start"] = walk.target_start, walk.source_start
    struct["extents"][0, :rank] = walk.extents
    struct["target_strides"][0, :rank] = walk.target_strides
    struct["source_strides"][0, :rank] = walk.source_strides
    return struct


def run(launch: Launch, device: int, stream: int) -> None:
    """Starts one launch on a CUDA device, in the stream with this handle."""
    numbers = (launch.count,) if launch.walk is None else (launch.count, walk_struct(launch.walk))
    arguments = (launch.target_address, launch.source_address, *numbers)
    _start(expression(launch), launch.blocks, launch.threads, arguments, device, stream)


def run_many(launch: ManyLaunch, table_address: int, device: int, stream: int) -> None:
    """Starts a copy of many runs. The launch's table lies on the card as int64 at `table_address`."""
    addresses = (launch.target_address, launch.source_address, table_address)
    arguments = (*addresses, launch.runs, launch.chunks)
    _start("copy_many", launch.blocks, launch.threads, arguments, device, stream)


def hold(outcome_address: int, flag_address: int, limit_ns: int, nap_ns: int, device: int, stream: int) -> None:
    """Starts the kernel that holds the stream until the flag is not 0, or the time is over."""
    _start("hold", 1, 1, (outcome_address, flag_address, limit_ns, nap_ns), device, stream)


def _start(name: str, blocks: int, threads: int, arguments: tuple[Any, ...], device: int, stream: int) -> None:
    import cupy

    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
        _kernel(name, device)((blocks,), (threads,), arguments)


@cache
def _kernel(name: str, device: int) -> Any:
    """The kernel on a device, which must be the current one. Two threads that meet here compile twice, and no harm."""
    import cupy

    module = cupy.RawModule(code=kernel_source(), options=OPTIONS, name_expressions=(name,))
    return module.get_function(name)
