"""Copies that take a kernel: strided, with a conversion, into a sum, many small ones at once.

    copy(source, target)   add(source, target)   copy_many(pairs)      on CUDA cards; available(device) says why not
    Latch                                                              holds a stream

    walk, launch           what is decided: positions, kernel, threads      plain values, no torch
    numba_body             the kernels in Python, for readers               runs on Numba's simulator in the tests
    cuda_body              the kernels in CUDA C++ (csrc/kernels.cu)        what runs on a card

One signature, two bodies: both take the same launch and give the same bits, and one suite of tests holds them to it. On
virtual cards and on the CPU torch's copy_ and add_ serve; nothing here is needed.
"""

from poolrt.transfer.kernels.availability import available
from poolrt.transfer.kernels.entry import add, copy, copy_many
from poolrt.transfer.kernels.latch import Latch

__all__ = ["Latch", "add", "available", "copy", "copy_many"]
