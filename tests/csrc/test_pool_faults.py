"""The pool of the built module under a driver that fails at every call, one after another; nothing is left behind.

call      1     2     3     4   ...   n
run 1     X     .     .     .         .        X fails once; afterwards the pool adds up, gives everything back,
run 2     .     X     .     .         .        and grants the next request
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import poolrt._C as _C
from poolrt.errors import DriverError

MIB = 1 << 20
OUT_OF_MEMORY, BROKEN = 2, 999


@pytest.fixture
def driver() -> Iterator[_C.HostDriver]:
    driver = _C.host_driver()
    driver.configure([16 * MIB, 16 * MIB])
    yield driver
    driver.clear_fault()
    driver.configure([16 * MIB, 16 * MIB])


def open_pool(driver: _C.HostDriver) -> _C.Pool:
    return _C.Pool(driver, [(0, 16 * MIB), (1, 16 * MIB)], host_limit_nbytes=16 * MIB)


class Owner:
    """Asks, fills, checks and gives back; remembers which statuses it was answered with."""

    def __init__(self, pool: _C.Pool) -> None:
        self.pool = pool
        self.blocks: list[tuple[int, int, int]] = []
        self.codes: set[int] = set()
        self.marks = 0

    def tried(self, function, *arguments) -> tuple[bool, object]:
        try:
            return True, function(*arguments)
        except DriverError as error:
            self.codes.add(error.code)
            return False, None

    def allocate(self, nbytes: int, home: int) -> None:
        granted, address = self.tried(self.pool.allocate, nbytes, home)
        if granted:
            self.marks = self.marks % 250 + 1
            ctypes.memset(address + nbytes - 1, self.marks, 1)
            self.blocks.append((address, nbytes, self.marks))

    def free(self, index: int, streams: list[int] | None = None) -> None:
        if self.blocks:
            address, nbytes, mark = self.blocks[index]
            assert ctypes.string_at(address + nbytes - 1, 1)[0] == mark
            if self.tried(self.pool.free, address, streams or [])[0]:
                del self.blocks[index]

    def free_all(self) -> None:
        while self.blocks:
            self.free(0)


def scenario(owner: Owner) -> None:
    """Spilling, streams, sharing, eviction and trimming: over 200 driver calls."""
    for _ in range(4):
        for nbytes, home in ((3000, 0), (9 * MIB, 0), (14 * MIB, 0), (7 * MIB, 1)):
            owner.allocate(nbytes, home)
        owner.free(0, [0])
        owner.free(0)
        owner.allocate(18 * MIB, 1)
        owner.free(-1, [0])
        owner.allocate(600_000, 1)
        owner.tried(owner.pool.trim)
        owner.allocate(5 * MIB, 0)
        owner.free_all()
    owner.tried(owner.pool.trim)


def run(driver: _C.HostDriver, at_call: int | None, status: int = BROKEN) -> tuple[int, set[int]]:
    """The driver calls of one scenario, and what the pool answered; everything is checked afterwards."""
    pool = open_pool(driver)
    owner = Owner(pool)
    before = driver.calls()
    if at_call is not None:
        driver.set_fault(at_call, status)
    scenario(owner)
    calls = driver.calls() - before
    driver.clear_fault()
    owner.free_all()
    assert pool.audit() == ""
    owner.allocate(20 * MIB, 0)
    assert len(owner.blocks) == 1, "the next request works"
    owner.free_all()
    assert pool.close() == []
    state = driver.page_state()
    assert (state.handle_count, state.mapped_nbytes, state.reserved_nbytes, state.event_count) == (0, 0, 0, 0)
    assert [driver.ledger(place).used_nbytes for place in (0, 1, _C.HOST_MEMORY)] == [0, 0, 0]
    assert pool.stats().lost_handles == 0
    return calls, owner.codes


def process_state() -> tuple[int, int]:
    """(file descriptors, regions of shared memory) of this process."""
    permissions = [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return len(os.listdir("/proc/self/fd")), sum(text.endswith("s") for text in permissions)


def test_a_fault_at_every_driver_call(driver):
    calls, codes = run(driver, None)
    assert calls >= 200
    assert codes == set()
    before = process_state()
    answered = [run(driver, at_call)[1] for at_call in range(1, calls + 1)]
    assert process_state() == before
    assert all(codes <= {BROKEN, OUT_OF_MEMORY} for codes in answered), "what could not be freed takes room"
    assert sum(BROKEN in codes for codes in answered) > calls // 2, "most failures reach the caller"


def test_a_driver_out_of_memory_at_any_call_is_no_other_error(driver):
    calls, _ = run(driver, None)
    for at_call in range(1, calls + 1, 3):
        assert run(driver, at_call, status=OUT_OF_MEMORY)[1] <= {OUT_OF_MEMORY}
