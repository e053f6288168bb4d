"""Copies on one CUDA GPU: routes forced within it, streams, gradients. Passed over without a GPU.

    TORCH_CUDA_SANITIZER=1 python -m pytest -m gpu tests/gpu/test_copies.py

runs them under torch's own check for missing waits between streams.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import poolrt
from poolrt.transfer.bounce import BounceRing, release, ring_between
from poolrt.transfer.copy import copy, copy_over
from poolrt.transfer.many import copy_many
from poolrt.transfer.move import move, start
from poolrt.transfer.ring import BUFFERS, CHUNK_NBYTES
from poolrt.transfer.routes import current
from poolrt.transfer.streams import mark

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

MIB = 1 << 20
SIZES = [1, 4097, 512 * 1024, 3 * MIB + 5, 17 * MIB]
SLEEP_CYCLES = 50_000_000
"""some 30 ms of a stream's time"""


@pytest.fixture
def device() -> Iterator[torch.device]:
    yield torch.device("cuda:0")
    torch.cuda.synchronize()
    release()


def random_bytes(nbytes: int) -> Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8)


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("route", ["LOCAL", "HOST"])
def test_every_byte_arrives(device: torch.device, route: str, nbytes: int) -> None:
    values = random_bytes(nbytes)
    source, target = values.to(device), torch.zeros(nbytes, dtype=torch.uint8, device=device)
    copy_over(route, source, target)
    assert torch.equal(target.cpu(), values)


@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("to", [torch.float64, torch.float32, torch.float16, torch.uint8])
def test_casts_and_strides_over_the_host_have_the_bits_of_copy(
    device: torch.device, of: torch.dtype, to: torch.dtype
) -> None:
    source = torch.randint(0, 2, (33, 65), device=device).to(of).t()
    found = torch.zeros(65, 66, dtype=to, device=device)[:, ::2]
    copy_over("HOST", source, found)
    assert torch.equal(found, torch.zeros(65, 33, dtype=to, device=device).copy_(source))


def test_the_buffers_are_pinned_and_made_once(device: torch.device) -> None:
    ring = ring_between(device, device)
    assert all(buffer.is_pinned() for buffer in ring._buffers)
    assert ring_between(device, device) is ring
    assert ring.nbytes == BUFFERS * CHUNK_NBYTES


def test_a_copy_follows_the_work_before_it_and_holds_up_the_work_behind(device: torch.device) -> None:
    """The stream sleeps before it writes the source, writes it anew right after the copy, and reads the target."""
    nbytes = 9 * MIB
    values = random_bytes(nbytes)
    there, source = values.to(device), torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    for _ in range(3):
        source.zero_()
        target.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)
        source.copy_(there)
        copy_over("HOST", source, target)
        source.zero_()
        read = target.clone()
        assert torch.equal(read.cpu(), values)


def test_copies_of_several_streams_share_a_ring(device: torch.device) -> None:
    values = [random_bytes(5 * MIB + i) for i in range(4)]
    sources = [value.to(device) for value in values]
    targets = [torch.zeros_like(source) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            copy_over("HOST", source, target)
    torch.cuda.synchronize()
    for value, target in zip(values, targets, strict=True):
        assert torch.equal(target.cpu(), value)


def test_a_ring_started_after_an_event_does_not_wait_for_what_comes_later(device: torch.device) -> None:
    values = random_bytes(6 * MIB)
    source, target = values.to(device), torch.zeros(6 * MIB, dtype=torch.uint8, device=device)
    ring = BounceRing(device, device)
    given = mark(device)
    torch.cuda._sleep(20 * SLEEP_CYCLES)
    busy = mark(device)
    arrived = ring.start(source, target, given)
    arrived.synchronize()
    assert not busy.query()
    torch.cuda.synchronize()
    assert torch.equal(target.cpu(), values)


@pytest.mark.parametrize("route", ["LOCAL", "HOST"])
def test_gradients_are_those_of_copy(device: torch.device, route: str) -> None:
    def gradients(copy_into) -> list[Tensor]:
        torch.manual_seed(3)
        source, before = (torch.randn(40, 30, dtype=torch.float64, device=device).requires_grad_() for _ in range(2))
        result = copy_into((source * 2).float(), before * 1)
        (result * torch.arange(30.0, device=device)).sum().backward()
        return [source.grad, before.grad]

    expected = gradients(lambda source, target: target.copy_(source))
    if route == "HOST":
        current().lose(device, device, "for the test")
    try:
        found = gradients(copy)
    finally:
        current().forget("cuda")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_to_and_from_the_host(device: torch.device) -> None:
    tensor = torch.randn(1000)
    there = poolrt.copy(tensor, torch.empty(1000, device=device))
    assert torch.equal(poolrt.copy(there, torch.empty(1000)), tensor)
    assert torch.equal(move(there, torch.device("cpu")), tensor)
    assert start(there, device).wait().data_ptr() == there.data_ptr()


def test_many_pairs_arrive(device: torch.device) -> None:
    sources = [torch.randn(size, device=device) for size in range(1, 200)]
    targets = [torch.zeros_like(source) for source in sources]
    copy_many(zip(sources, targets, strict=True))
    assert all(torch.equal(source, target) for source, target in zip(sources, targets, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize("route", ["P2P", "HOST"])
@pytest.mark.parametrize("nbytes", SIZES)
def test_between_two_gpus(nbytes: int, route: str) -> None:
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    values = random_bytes(nbytes)
    source = values.to(first)
    if route == "P2P" and not torch.cuda.can_device_access_peer(1, 0):
        pytest.skip("these two do not reach each other")
    target = torch.zeros(nbytes, dtype=torch.uint8, device=second)
    copy_over(route, source, target)
    assert torch.equal(target.cpu(), values)
    arrived = start(source, second).wait()
    assert torch.equal(arrived.cpu(), values)
    release()
