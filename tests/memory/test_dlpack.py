"""A tensor over two cards in the hands of other libraries: the same memory, nothing copied.

Libraries with threads of their own run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

import poolrt
from poolrt.memory.dlpack import exported
from poolrt.memory.extent import Extent
from poolrt.memory.pool import Pool

MIB = 1 << 20
SPANNING = """
import torch, poolrt
from poolrt.memory.pool import Pool
from poolrt.memory.dlpack import exported

pool = Pool(poolrt.virtual(cards=2, memory="4MiB"))
t = pool.empty(6 << 18, dtype=torch.float32).copy_(torch.arange(6 << 18, dtype=torch.float32))
assert [extent.nbytes >> 20 for extent in pool.extents(t)] == [4, 2]
view = t[(1 << 20) - 2 : (1 << 20) + 2]  # across the border
"""
CHECKS = {
    "jax": """
import jax
received = jax.dlpack.from_dlpack(exported(t))
assert received.shape == (6 << 18,)
assert float(received[-1]) == (6 << 18) - 1
assert jax.dlpack.from_dlpack(exported(view)).tolist() == view.tolist()
assert received.unsafe_buffer_pointer() == t.data_ptr()
""",
    "tensorflow": """
import tensorflow
received = tensorflow.experimental.dlpack.from_dlpack(exported(t).__dlpack__())
assert received.shape == (6 << 18,)
assert float(received[-1]) == (6 << 18) - 1
t[-1:].fill_(7)
assert float(received[-1]) == 7
""",
    "numba": """
import numba, numpy

@numba.njit
def double(values):
    for i in range(values.size):
        values[i] *= 2

double(numpy.from_dlpack(exported(t)))
assert t[-1].item() == 2 * ((6 << 18) - 1)
assert view.tolist() == [2 * i for i in range((1 << 20) - 2, (1 << 20) + 2)]
""",
}


@pytest.mark.parametrize("library", CHECKS)
def test_another_library_works_on_the_same_memory(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    script = SPANNING + CHECKS[library]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def pool():
    with Pool(poolrt.virtual(cards=2, memory="4MiB")) as pool:
        yield pool


def test_numpy_writes_where_torch_reads(pool):
    t = pool.zeros(6 * MIB, dtype=torch.uint8)
    array = np.from_dlpack(exported(t))
    assert not array.flags.owndata
    array[4 * MIB - 1 : 4 * MIB + 1] = 9
    assert t[4 * MIB - 2 : 4 * MIB + 2].tolist() == [0, 9, 9, 0]
    del array, t


def test_the_receiver_keeps_the_memory(pool):
    array = np.from_dlpack(exported(pool.full((3 * MIB,), 5, dtype=torch.uint8)))
    assert pool.stats().live_nbytes == 4 * MIB
    assert int(array[-1]) == 5
    del array
    assert pool.stats().live_nbytes == 0


def test_it_comes_back_as_a_tensor(pool):
    t = pool.zeros(2, 3)
    back = torch.from_dlpack(exported(t))
    back[1, 2] = 4
    assert t[1, 2].item() == 4
    assert pool.extents(t) == [Extent(0, 24)]
    del back


def test_a_tensor_that_learns_is_refused(pool):
    weight = pool.zeros(3).requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        exported(weight)
    del weight
