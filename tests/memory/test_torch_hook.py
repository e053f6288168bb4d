"""The C functions that torch's pluggable allocator is given, called as torch calls them: over virtual cards here."""

from __future__ import annotations

import ctypes

import pytest

import poolrt
import poolrt._C as _C
from poolrt.errors import DriverError

MIB = 1 << 20


@pytest.fixture
def core():
    poolrt.virtual(cards=2, memory="8MiB")
    core = _C.Pool(_C.host_driver(), [(0, 4 * MIB), (1, 8 * MIB)])
    yield core
    core.close()


@pytest.fixture
def library():
    return ctypes.CDLL(_C.__file__)


def pair(library, slot):
    allocate, free = library[f"poolrt_malloc_{slot}"], library[f"poolrt_free_{slot}"]
    allocate.restype = ctypes.c_void_p
    allocate.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    free.restype = None
    free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    return allocate, free


def test_every_pair_is_there(library):
    for slot in range(_C.ALLOCATOR_SLOTS):
        pair(library, slot)


def test_a_pair_serves_its_pool_and_home(core, library):
    _C.register_pair(3, core, 1)
    try:
        allocate, free = pair(library, 3)
        address = allocate(6 * MIB, 0, None)
        assert core.extents(address) == [(1, 6 * MIB)]
        assert core.home(address) == 1
        free(address, 6 * MIB, 0, None)
        assert core.stats().live_nbytes == 0
    finally:
        _C.unregister_pair(3)


def test_what_cannot_be_had_is_null_and_no_exception(core, library):
    _C.register_pair(0, core, 0)
    try:
        allocate, _ = pair(library, 0)
        assert allocate(64 * MIB, 0, None) is None
        assert allocate(-1, 0, None) is None
    finally:
        _C.unregister_pair(0)
    assert pair(library, 0)[0](MIB, 0, None) is None


def test_a_block_freed_on_a_stream_waits_for_it(core, library):
    """The stream still works on the first block: the second gets another one."""
    driver = _C.host_driver()
    stream = driver.stream_create(0)
    _C.register_pair(1, core, 0)
    try:
        allocate, free = pair(library, 1)
        first = allocate(2 * MIB, 0, None)
        driver.stream_hold(stream)
        free(first, 2 * MIB, 0, stream)
        assert core.stats().deferred_nbytes == 2 * MIB
        second = allocate(2 * MIB, 0, None)
        assert second != first
        driver.stream_pass(stream)
        assert core.stats().deferred_nbytes == 0
        assert allocate(2 * MIB, 0, None) == first
        for address in (first, second):
            free(address, 2 * MIB, 0, None)
    finally:
        _C.unregister_pair(1)
        driver.stream_destroy(stream)


def test_a_pair_belongs_to_one_home_at_a_time(core):
    _C.register_pair(2, core, 0)
    with pytest.raises(DriverError, match="pair 2"):
        _C.register_pair(2, core, 1)
    _C.unregister_pair(2)
    with pytest.raises(DriverError, match="not registered"):
        _C.unregister_pair(2)
