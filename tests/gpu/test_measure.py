"""What is measured on one CUDA GPU: run by `make gpu-check`, passed over without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import poolrt
from poolrt.topology.discover import discover_cuda
from poolrt.topology.identity import identify
from poolrt.topology.sources.nvml_counters import nvlink_counters
from poolrt.transfer import bounce
from poolrt.transfer.copy import copy_over
from poolrt.transfer.measuring.effort import QUICK
from poolrt.transfer.measuring.leg import HungError, make_leg, wait_within
from poolrt.transfer.measuring.measure import measure
from poolrt.transfer.measuring.measured import measured, recalled
from poolrt.transfer.measuring.pattern import Patterns
from poolrt.transfer.measuring.probe import prove, prove_host
from poolrt.transfer.measuring.stopwatch import time_copies
from poolrt.units import KIB, MIB

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SHORT = replace(QUICK, seconds=2.0)


@pytest.fixture(autouse=True)
def no_buffers_left() -> Iterator[None]:
    yield
    bounce.release()


def buffers(nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (torch.zeros(nbytes // 8, dtype=torch.int64, device="cuda:0") for _ in range(2))
    return first, second


def test_shares_of_one_gpu_are_measured_as_one_gpu_and_never_as_peers() -> None:
    found = measure(poolrt.logical("cuda:0", cards=3, memory="1GiB"), effort=SHORT)
    assert {(x.route, x.source, x.target, x.direction) for x in found.figures} == {("LOCAL", 0, 0, "one way")}
    assert found.verdicts == ()
    assert found.bytes_per_s(0, 1) is None
    assert all(proof.good for proof in found.proofs)


def test_a_copy_within_the_gpu_is_timed_by_the_gpu() -> None:
    leg = make_leg(copy_over, "LOCAL", *buffers(64 * MIB))
    time_copies([leg], 64 * MIB)
    seconds = min(time_copies([leg], 64 * MIB) for _ in range(5))
    total = torch.cuda.get_device_properties(0)
    assert 64 * MIB / seconds < 10e12, f"{total.name} cannot be that fast: the end was not waited for"
    assert seconds < 64 * MIB / 10e9, "slower than any GPU's memory: time to queue was measured"
    assert min(time_copies([leg], 4 * KIB) for _ in range(5)) < seconds


def test_the_bounce_buffers_deliver_within_one_gpu() -> None:
    leg = make_leg(copy_over, "HOST", *buffers(64 * MIB))
    sizes = (1 * MIB, 4 * MIB, 64 * MIB)
    found = list(prove(leg, 0, 1, Patterns(64 * MIB), sizes))
    assert [proof.nbytes for proof in found] == list(sizes)
    assert all(proof.good for proof in found)
    assert prove_host(0, leg.target, Patterns(64 * MIB)).good


def test_a_lie_is_found() -> None:
    def lie(kind: object, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)
        target.view(torch.uint8)[12_345_678] ^= 1

    (found,) = prove(make_leg(lie, "LOCAL", *buffers(64 * MIB)), 0, 1, Patterns(64 * MIB), (64 * MIB,))
    assert (found.wrong_nbytes, found.first_wrong) == (1, 12_345_678)


def test_a_copy_that_does_not_end_is_not_waited_for() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(1 << 31)  # a second or so
        event = torch.Event(device="cuda:0")
        event.record(torch.cuda.current_stream())
    with pytest.raises(HungError):
        wait_within([event], 0.01)
    assert not event.query()
    torch.cuda.synchronize()


def test_what_was_measured_is_kept_for_this_gpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POOLRT_CACHE_DIR", str(tmp_path))
    topology = discover_cuda()
    who = identify(topology)
    assert who is not None
    assert all(uuid.startswith("GPU-") for uuid in who.cards)
    found = measured(topology, effort=SHORT)
    assert recalled(topology) == found
    assert measured(topology, effort=SHORT) == found


def test_the_nvlink_counters_answer_or_are_not_there() -> None:
    who = identify(poolrt.logical("cuda:0", cards=1, memory="1GiB"))
    assert who is not None
    with nvlink_counters() as counters:
        sent = counters.sent_nbytes(who.cards[0]) if counters else None
    assert sent is None or sent >= 0
