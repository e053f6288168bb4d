"""A pool under whatever order of requests hypothesis thinks of: several threads, blocks filled with marks, faults.

Every thread owns its blocks and fills them with marks of its own; a mark that changed, a block handed out twice, or a
byte that does not add up fails the run. One step of the machine is some hundred operations in each thread, while the
main thread does something to the pool they share.

    thread 0:  allocate  fill  free ...      |
    thread 1:  allocate  free  move ...      |  meanwhile: trim, limits, a stream that is held, a driver that fails
    thread 2:  free  allocate  retain ...    |
"""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import poolrt._C as _C
from poolrt.errors import DriverError

MIB = 1 << 20
LIMITS = (24 * MIB, 16 * MIB)
HOST_LIMIT = 8 * MIB
THREADS = 3
OPERATIONS = 160
OUT_OF_MEMORY, NOT_SUPPORTED, BROKEN = 2, 801, 999


@dataclass(frozen=True, slots=True)
class Block:
    """One granted block; head, middle and tail carry the mark."""

    address: int
    nbytes: int
    mark: int

    def spots(self) -> list[tuple[int, int]]:
        """(address, bytes) of what is marked."""
        size = min(self.nbytes, 64)
        return [(self.address + at, size) for at in (0, (self.nbytes - size) // 2, self.nbytes - size)]

    def fill(self) -> None:
        for address, size in self.spots():
            ctypes.memset(address, self.mark, size)

    def is_intact(self) -> bool:
        return all(ctypes.string_at(address, size) == bytes([self.mark]) * size for address, size in self.spots())


class Owner:
    """What one thread does to the pool, chosen by a seeded generator."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.blocks: list[Block] = []
        self.operations = 0

    def work(self, pool: _C.Pool, seed: int, streams: list[int | tuple[int, int]], may_break: bool) -> None:
        """A few hundred operations; a broken driver is let through only if `may_break`."""
        chance = random.Random(seed * THREADS + self.number)
        for _ in range(OPERATIONS):
            operation = chance.choices((self.allocate, self.free, self.share, self.move), (10, 9, 2, 1))[0]
            try:
                operation(pool, chance, streams)
            except DriverError as error:
                allowed = {OUT_OF_MEMORY, NOT_SUPPORTED} | ({BROKEN} if may_break else set())
                assert error.code in allowed, error
            self.operations += 1

    def allocate(self, pool: _C.Pool, chance: random.Random, streams: list[int | tuple[int, int]]) -> None:
        nbytes = chance.choice((chance.randint(1, 3000), chance.randint(1, MIB), chance.randint(MIB, 6 * MIB)))
        if chance.random() < 0.02:
            nbytes = chance.randint(16 * MIB, 30 * MIB)
        address = pool.allocate(nbytes, chance.randrange(2))
        block = Block(address, nbytes, chance.randrange(1, 80) * THREADS + self.number)
        block.fill()
        self.blocks.append(block)

    def free(self, pool: _C.Pool, chance: random.Random, streams: list[int | tuple[int, int]]) -> None:
        if not self.blocks:
            return
        index = chance.randrange(len(self.blocks))
        block = self.blocks[index]
        assert block.is_intact(), block
        pool.free(block.address, [chance.choice(streams)] if streams and chance.random() < 0.2 else [])
        self.blocks[index] = self.blocks[-1]
        self.blocks.pop()

    def share(self, pool: _C.Pool, chance: random.Random, streams: list[int | tuple[int, int]]) -> None:
        if self.blocks:
            block = chance.choice(self.blocks)
            pool.retain(block.address)
            pool.free(block.address)
            assert block.is_intact(), block

    def move(self, pool: _C.Pool, chance: random.Random, streams: list[int | tuple[int, int]]) -> None:
        small = [block for block in self.blocks if block.nbytes <= 3 * MIB]  # copying larger ones takes long
        if not small or chance.random() < 0.7:
            return
        block = chance.choice(small)
        try:
            pool.move(block.address, chance.randrange(2))
        finally:
            assert block.is_intact(), block


class PoolMachine(RuleBasedStateMachine):
    """One pool over two small cards and the host, and the threads that use it."""

    operations = 0
    """Of all machines of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = _C.host_driver()
        self.driver.configure(LIMITS)
        cards = list(enumerate(LIMITS))
        self.pool = _C.Pool(self.driver, cards, host_limit_nbytes=HOST_LIMIT, chunk_nbytes=8 * MIB)
        self.owners = [Owner(number) for number in range(THREADS)]
        self.stream = self.driver.stream_create(1)

    @rule(seed=st.integers(0, 1 << 20))
    def alone(self, seed: int) -> None:
        self.at_once(seed, lambda: None)

    @rule(seed=st.integers(0, 1 << 20))
    def while_cached_memory_is_given_back(self, seed: int) -> None:
        self.at_once(seed, lambda: [self.pool.trim() for _ in range(3)])

    @rule(seed=st.integers(0, 1 << 20), place=st.sampled_from((0, 1, None)), percent=st.integers(0, 100))
    def while_a_limit_changes(self, seed: int, place: int | None, percent: int) -> None:
        limit = HOST_LIMIT if place is None else LIMITS[place]
        self.at_once(seed, lambda: self.pool.set_limit(place, limit * percent // 100))
        self.pool.set_limit(place, limit)

    @rule(seed=st.integers(0, 1 << 20), nbytes=st.sampled_from((0, 4 * MIB, None)))
    def while_the_cache_is_bounded(self, seed: int, nbytes: int | None) -> None:
        self.at_once(seed, lambda: self.pool.set_cache_limit(nbytes))

    @rule(seed=st.integers(0, 1 << 20))
    def while_a_stream_is_held(self, seed: int) -> None:
        self.driver.stream_hold(self.stream)

        def pass_it() -> None:
            time.sleep(0.002)
            self.driver.stream_pass(self.stream)

        self.at_once(seed, pass_it)

    @rule(seed=st.integers(0, 1 << 20), at_call=st.integers(1, 60), count=st.integers(1, 5))
    def while_the_driver_fails(self, seed: int, at_call: int, count: int) -> None:
        self.driver.set_fault(at_call, BROKEN, 0, count)
        self.at_once(seed, lambda: None, may_break=True)
        self.driver.clear_fault()

    @rule(seed=st.integers(0, 1 << 20), at_call=st.integers(1, 60), count=st.integers(1, 20))
    def while_the_driver_runs_out(self, seed: int, at_call: int, count: int) -> None:
        self.driver.set_fault(at_call, OUT_OF_MEMORY, 0, count)
        self.at_once(seed, lambda: None)
        self.driver.clear_fault()

    @rule(keep=st.integers(0, 2))
    def most_blocks_go(self, keep: int) -> None:
        for owner in self.owners:
            while len(owner.blocks) > keep:
                owner.free(self.pool, random.Random(keep), [])

    def at_once(self, seed: int, meanwhile: Callable[[], object], may_break: bool = False) -> None:
        """All threads work with the same seed while this one does something else; their failures are raised here."""
        failures: list[BaseException] = []

        def run(owner: Owner) -> None:
            try:
                owner.work(self.pool, seed, [0, (1, self.stream)], may_break)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(owner,)) for owner in self.owners]
        for thread in threads:
            thread.start()
        meanwhile()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    @invariant()
    def everything_adds_up(self) -> None:
        assert self.pool.audit() == ""
        now = self.pool.stats()
        mapped = sum(tier.mapped_nbytes for tier in now.tiers)
        assert mapped == now.live_nbytes + now.cached_nbytes + now.deferred_nbytes
        assert mapped == sum(self.driver.ledger(place).used_nbytes for place in (0, 1, _C.HOST_MEMORY))
        assert now.requested_nbytes == sum(block.nbytes for owner in self.owners for block in owner.blocks)
        assert now.lost_handles == 0

    @invariant()
    def every_block_is_where_it_was_and_as_it_was(self) -> None:
        blocks = sorted((block for owner in self.owners for block in owner.blocks), key=lambda block: block.address)
        assert [(block.address, block.nbytes) for block in blocks] == [block[:2] for block in self.pool.live()]
        assert all(block.is_intact() for block in blocks)
        assert all(a.address + a.nbytes <= b.address for a, b in itertools.pairwise(blocks))

    def teardown(self) -> None:
        self.driver.clear_fault()
        PoolMachine.operations += sum(owner.operations for owner in self.owners)
        for owner in self.owners:
            for block in owner.blocks:
                self.pool.free(block.address)
        assert self.pool.close() == []
        self.driver.stream_destroy(self.stream)
        left = self.driver.page_state()
        assert (left.handle_count, left.mapped_nbytes, left.reserved_nbytes, left.event_count) == (0, 0, 0, 0)


def test_a_pool_used_by_several_threads_stays_whole():
    PoolMachine.operations = 0
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=16,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert PoolMachine.operations >= 100_000
