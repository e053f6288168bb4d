"""The allocator benchmark: a recorded step is balanced, every contender serves it and is left empty."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20
POOLED = ("torch.empty in pool.use()", "pool.empty()", "_C.Pool, addresses")
IN_PROCESS = ("torch.empty, vcard", *POOLED)  # "torch.empty, CPU" means a process without virtual cards


@pytest.fixture
def small_trace():
    """MiB live: 1 that stands, then 5, 5.5, 1.5, 3.5, 3, and 1 again."""
    from allocator_trace import Trace

    half, two, four = MIB // 2, 2 * MIB, 4 * MIB
    events = ((0, four), (1, half), (0, -four), (2, two), (1, -half), (2, -two))
    return Trace(standing=(MIB,), events=events)


@pytest.fixture
def open_contender():
    """Opens contenders by name and closes them at the end; closing complains about blocks that are left."""
    from allocator_contenders import ON_CPU

    with ExitStack() as stack:
        yield lambda name: stack.enter_context(ON_CPU[name]())


# ---- traces


#   address:   64  96  64  64  99       99 was born before, 96 outlives the step
#   bytes:     +8  +4  -8  +2  -7  -2
#   block:      0       0   1       1
def test_an_address_that_comes_back_is_another_block() -> None:
    from allocator_trace import numbered

    allocations = [(64, 8), (96, 4), (64, -8), (64, 2), (99, -7), (64, -2)]
    assert list(numbered(allocations)) == [(0, 8), (0, -8), (1, 2), (1, -2)]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.booleans()), max_size=60))
def test_numbered_events_are_balanced_whatever_was_seen(asked: list[tuple[int, int, bool]]) -> None:
    from allocator_trace import Trace, numbered

    sizes: dict[int, int] = {}
    allocations = []
    for address, nbytes, birth in asked:
        if birth and address not in sizes:
            sizes[address] = nbytes
            allocations.append((address, nbytes))
        elif not birth:
            allocations.append((address, -sizes.pop(address, nbytes)))
    events = list(numbered(allocations))
    births = {block: nbytes for block, nbytes in events if nbytes > 0}
    assert list(births) == list(range(len(births)))
    assert {block: -nbytes for block, nbytes in events if nbytes < 0} == births
    trace = Trace(standing=(5,), events=tuple(events))
    assert trace.blocks == len(births)
    assert trace.live_nbytes[-1:] == [5] * bool(events)
    assert trace.peak_nbytes >= 5


def test_the_peak_is_where_most_bytes_live(small_trace) -> None:
    assert small_trace.live_nbytes == [5 * MIB, 5.5 * MIB, 1.5 * MIB, 3.5 * MIB, 3 * MIB, MIB]
    assert (small_trace.peak_nbytes, small_trace.peak_at, small_trace.blocks) == (5.5 * MIB, 2, 3)


def test_a_recorded_step_makes_every_gradient_and_leaves_nothing() -> None:
    from allocator_record import record_step
    from bert import BertShape, make_bert

    shape = BertShape(layers=1, hidden=64, batch_size=2, sequence_length=8)
    weights = [parameter.nbytes for parameter in make_bert(shape).parameters()]
    trace = record_step(shape)
    assert trace.standing[: len(weights)] == tuple(weights)
    steps, firsts, seconds = (trace.standing[len(weights) + i :: 3] for i in range(3))  # AdamW's state of a weight
    assert set(steps) == {4}
    assert firsts == seconds
    assert len(weights) / 2 < len(firsts) <= len(weights)  # none for a weight without a gradient
    assert sum(nbytes for _block, nbytes in trace.events) == 0
    born = [nbytes for _block, nbytes in trace.events if nbytes > 0]
    for nbytes in set(firsts):
        assert born.count(nbytes) >= firsts.count(nbytes)
    assert trace.peak_nbytes >= sum(trace.standing) + sum(firsts)


# ---- contenders


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_replay_serves_the_step_and_leaves_nothing(name, open_contender, small_trace) -> None:
    from allocator_tasks import Replay

    contender = open_contender(name)
    replay = Replay(contender, small_trace)
    first = replay.time(written=True)
    seen = replay.observe()
    second = replay.time(written=False)
    assert seen["peak_live_nbytes"] == 5.5 * MIB
    if name in POOLED:
        assert first["counts"]["misses"] > 0
        assert second["counts"] == {"hits": 3, "misses": 0, "driver_calls": 0}
        assert seen["peak_held_nbytes"] >= seen["peak_live_nbytes"]
        assert 0 <= seen["fragmentation"] < 1
    else:
        assert second["counts"] == {}
        assert seen["peak_held_nbytes"] is None
    replay.close()


def test_writing_reaches_every_byte_of_a_block(open_contender) -> None:
    from allocator_tasks import Replay
    from allocator_trace import Trace

    replay = Replay(open_contender("pool.empty()"), Trace(standing=(3 * MIB,), events=()))
    (block,) = replay._standing
    assert torch.equal(block.cpu(), torch.ones(3 * MIB, dtype=torch.uint8))
    del block
    replay.close()


def test_blocks_that_are_left_are_told() -> None:
    from allocator_contenders import core_on_host

    with pytest.raises(RuntimeError, match="1 blocks were not freed"), core_on_host() as contender:
        address = contender.allocate(100)
    contender.free(address)


@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.parametrize("nbytes", [512, 2 * MIB])
def test_cached_pairs_make_no_driver_call_and_uncached_ones_do(name, nbytes, open_contender) -> None:
    from allocator_tasks import time_pairs

    contender = open_contender(name)
    cached = time_pairs(contender, nbytes, 10, cached=True)
    assert len(cached["single_s"]) == 10
    if contender.trim is None:
        with pytest.raises(ValueError, match="cached only"):
            time_pairs(contender, nbytes, 1, cached=False)
        return
    assert cached["counts"] == {"hits": 20, "misses": 0, "driver_calls": 0}
    uncached = time_pairs(contender, nbytes, 2, cached=False)
    assert uncached["counts"]["misses"] == 4
    assert uncached["counts"]["driver_calls"] > 0


def test_ratios_are_to_the_reference_of_the_same_size() -> None:
    from allocator import summed_up

    rows = [
        {"contender": "slow", "nbytes": 8, "round_s": [4.0, 6.0, 9.0]},
        {"contender": "quick", "nbytes": 8, "round_s": [1.0, 2.0, 3.0]},
        {"contender": "quick", "nbytes": 9, "round_s": [5.0]},
    ]
    found = summed_up(rows, "quick")
    assert [(row["median_s"], row["times_reference"]) for row in found] == [(6.0, 3.0), (2.0, 1.0), (5.0, 1.0)]


# ---- the whole


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_program_measures_every_contender_and_size() -> None:
    from allocator_program import measure_cpp

    rows = measure_cpp([512, 2 * MIB], rounds=2, pairs=100, cuda=False, optimize="-O0")
    assert {(row["contender"], row["nbytes"]) for row in rows} == {
        (name, nbytes) for name in ("uncached", "in stream", "cached", "malloc") for nbytes in (512, 2 * MIB)
    }
    calls = {(row["contender"], row["nbytes"]): row["driver_calls"] for row in rows}
    for nbytes in (512, 2 * MIB):
        assert calls["cached", nbytes] == calls["malloc", nbytes] == 0
        assert calls["uncached", nbytes] > 0
    assert all(len(row["round_s"]) == 2 and row["p99_s"] > 0 for row in rows)


def test_what_cannot_be_built_or_run_is_told() -> None:
    from allocator_program import _checked

    with pytest.raises(RuntimeError, match="ended with code 3:\nno such thing"):
        _checked(["sh", "-c", "echo no such thing >&2; exit 3"])


def test_every_contender_has_a_process_and_the_tables_are_filled(small_trace) -> None:
    import allocator
    from rich.console import Console

    names = ["torch.empty, CPU", "_C.Pool, addresses"]
    with allocator.workers(names, cuda=False) as (here, missing):
        assert [worker.name for worker in here] == names
        assert missing == {}
        latency = allocator.measure_latency(here, [512], rounds=2, pairs=100)
        replays = allocator.measure_replay(here, small_trace, rounds=2)
    assert [row["contender"] for row in latency] == [*names, "_C.Pool, addresses, uncached"]
    assert [row.get("driver_calls", 0) > 0 for row in latency] == [False, False, True]
    assert latency[0]["times_reference"] == 1.0
    assert [row["peak_live_nbytes"] for row in replays] == [5.5 * MIB] * 2
    assert replays[0]["peak_resident_nbytes"] > MIB
    assert replays[1]["second"]["counts"]["driver_calls"] == 0
    assert json.loads(json.dumps([latency, replays])) == [latency, replays]
    console = Console(width=200, file=io.StringIO())
    console.print(allocator.latency_table("Latency", latency), allocator.replay_table(small_trace, replays))
    printed = console.file.getvalue()
    assert all(printed.count(row["contender"]) >= 2 for row in replays)
    assert "5.5 MiB" in printed


def test_an_unknown_contender_is_refused(capsys) -> None:
    import allocator

    with pytest.raises(SystemExit):
        allocator.main(["--contenders", "magic"])
    assert "no contenders ['magic']" in capsys.readouterr().err


def test_a_contender_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import allocator_gpu
    import allocator_worker

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cupy" in (allocator_worker._open("cupy MemoryPool", cuda=True) or "")
    assert set(allocator_gpu.ENVIRONMENT) <= set(allocator_gpu.ON_GPU)
