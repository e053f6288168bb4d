"""A process that runs kernels over buffers that it is sent: `python worker.py numba` or `python worker.py LIBRARY.so`.

Numba's simulator needs a process of its own, as NUMBA_ENABLE_CUDASIM must be set before Numba is imported; the library
of host code has one so that a sanitizer's verdict ends that process and not the tests'. Requests and answers are
pickled, one after another, on standard input and output: (name, arguments), and (answer, None) or (None, what went
wrong).
"""

import ctypes
import os
import pickle
import sys
import traceback
import warnings

import numpy

TARGET_BASE, SOURCE_BASE = 1 << 20, 1 << 30
"""addresses that plans are made with; buffers begin at the same place within 64 bytes"""
ALIGNMENT = 64


def aligned(data):
    """A writable array of these bytes that begins at a multiple of ALIGNMENT."""
    room = numpy.zeros(len(data) + ALIGNMENT, numpy.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    array = room[begin : begin + len(data)]
    array[:] = numpy.frombuffer(data, numpy.uint8)
    return array


class NumbaWorker:
    """numba_body on the simulator."""

    def __init__(self):
        from poolrt.transfer.kernels import numba_body, numba_numbers

        self.body, self.dtype = numba_body, numba_numbers.storage_dtype
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's scalars tell of every overflow

    def run(self, launch, target, source):
        array = aligned(target)
        types = launch.types or ("word8", "word8")
        to = self._flat(array, launch.target_address - TARGET_BASE, types[-1])
        at = self._flat(aligned(source), launch.source_address - SOURCE_BASE, types[0])
        self.body.run(launch, to, at)
        return array.tobytes()

    def _flat(self, array, offset, name):
        dtype = self.dtype(name)
        length = (len(array) - offset) // dtype.itemsize * dtype.itemsize
        return array[offset : offset + length].view(dtype)

    def run_many(self, launch, target, source):
        array = aligned(target)
        to = array[launch.target_address - TARGET_BASE :]
        at = aligned(source)[launch.source_address - SOURCE_BASE :]
        self.body.run_many(launch, launch.table.ravel(), to, at)
        return array.tobytes()

    def hold(self, flag, limit_ns, nap_ns):
        outcome = numpy.zeros(1, numpy.int32)
        self.body.hold[1, 1](outcome, numpy.array([flag], numpy.int32), limit_ns, nap_ns)
        return int(outcome[0])


class HostWorker:
    """csrc/kernels.cu as host code."""

    def __init__(self, path):
        from poolrt.transfer.kernels import cuda_body

        self.library = ctypes.CDLL(path)
        self.library.launch_strided.restype = ctypes.c_bool
        self.body = cuda_body

    def run(self, launch, target, source):
        array, other = aligned(target), aligned(source)
        to = ctypes.c_void_p(array.ctypes.data + launch.target_address - TARGET_BASE)
        at = ctypes.c_void_p(other.ctypes.data + launch.source_address - SOURCE_BASE)
        lanes, count = (launch.blocks, launch.threads), ctypes.c_int64(launch.count)
        if launch.walk is None:
            self.library.launch_bytes(*lanes, to, at, count)
            return array.tobytes()
        name, walk = self.body.expression(launch), self.body.walk_struct(launch.walk)
        found = self.library.launch_strided(name.encode(), *lanes, to, at, count, ctypes.c_void_p(walk.ctypes.data))
        assert found, f"{name} is not in the library"
        return array.tobytes()

    def run_many(self, launch, target, source):
        array, other = aligned(target), aligned(source)
        to = ctypes.c_void_p(array.ctypes.data + launch.target_address - TARGET_BASE)
        at = ctypes.c_void_p(other.ctypes.data + launch.source_address - SOURCE_BASE)
        table = launch.table
        counts = (ctypes.c_int64(launch.runs), ctypes.c_int64(launch.chunks))
        self.library.launch_many(launch.blocks, launch.threads, to, at, ctypes.c_void_p(table.ctypes.data), *counts)
        return array.tobytes()

    def hold(self, flag, limit_ns, nap_ns):
        outcome, flags = ctypes.c_int32(0), ctypes.c_int32(flag)
        times = (ctypes.c_int64(limit_ns), ctypes.c_int64(nap_ns))
        self.library.launch_hold(ctypes.byref(outcome), ctypes.byref(flags), *times)
        return outcome.value


def serve(worker):
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between the answers
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (getattr(worker, name)(*arguments), None)
        except Exception:
            answer = (None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve(NumbaWorker() if sys.argv[1] == "numba" else HostWorker(sys.argv[1]))
