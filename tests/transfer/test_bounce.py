"""The ring carried out between virtual cards whose links take their time.

down   [0>a] [1>b] [2>c] [3>a] [4>b]
up           [a>0] [b>1] [c>2] [a>3] [b>4]

Every wait is needed: with one left out, bytes are wrong every time, as soon as one direction is slower than the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from poolrt.transfer.bounce import BounceRing, release, ring_between, rings_nbytes
from poolrt.transfer.copy import copy_over
from poolrt.transfer.ring import AFTER, BEFORE, BUFFERS, CHUNK_NBYTES, Side, Step, Wait, ring_steps
from poolrt.virtual_cards.links import carried, clear_links, set_link

Devices = tuple[torch.device, torch.device]
CHUNK = 64 << 10
CHUNKS = 5
FAST_BYTES_PER_S, SLOW_BYTES_PER_S = 1e9, 0.02e9
SPEEDS = {
    "down is slow": (SLOW_BYTES_PER_S, FAST_BYTES_PER_S),
    "up is slow": (FAST_BYTES_PER_S, SLOW_BYTES_PER_S),
}
STEPS: Sequence[Step] = (*BEFORE, *ring_steps(CHUNKS), *AFTER)
WAITS = [index for index, step in enumerate(STEPS) if isinstance(step, Wait)]
REPETITIONS = 2


def name_of(index: int) -> str:
    step = STEPS[index]
    times = sum(earlier == step for earlier in STEPS[:index]) + 1
    return f"{step.side} waits for {step.event[0]} {'abc'[step.event[1]]}, time {times}"


def random_bytes(chunks: int) -> Tensor:
    return torch.randint(0, 256, (chunks * CHUNK,), dtype=torch.uint8)


class Stage:
    """A ring, and streams in which both cards work before and after the copy."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self.ring = BounceRing(*devices, chunk_nbytes=CHUNK)
        self.sides: dict[Side, torch.Stream] = {
            "producer": torch.Stream(device=devices[0]),
            "consumer": torch.Stream(device=devices[1]),
        }

    def copy(self, source: Tensor, target: Tensor, steps: Sequence[Step]) -> None:
        self.ring.carry_out(steps, source, target, self.sides.__getitem__, {})

    def enqueue(self, side: Side, source: Tensor, target: Tensor) -> None:
        with self.sides[side]:
            target.copy_(source, non_blocking=True)

    def finish(self) -> None:
        for device in self.devices:
            torch.vcard.synchronize(device)
        clear_links()


@pytest.fixture
def stage(devices: Devices) -> Iterator[Stage]:
    made = Stage(devices)
    yield made
    made.finish()


def is_right(stage: Stage, speeds: str, steps: Sequence[Step], needed: str = "", chunks_before: int = BUFFERS) -> bool:
    """Whether all bytes are right: of this copy, of the one before it through the same ring, of the work around it.

    Args:
        stage: the cards.
        speeds: of the ring's two links.
        steps: of this copy.
        needed: an event; the work it speaks of is slow ("given": filling the source, "vacant": reading the target).
        chunks_before: of the copy before.
    """
    values, old, earlier = random_bytes(CHUNKS), random_bytes(CHUNKS), random_bytes(chunks_before)
    source = (torch.zeros_like(values) if needed == "given" else values).to(stage.devices[0])
    target, rescued, read = old.to(stage.devices[1]), torch.zeros_like(old), torch.zeros_like(old)
    earlier_source, earlier_target = earlier.to(stage.devices[0]), torch.zeros_like(earlier, device=stage.devices[1])
    zeros = torch.zeros_like(values)
    down, up = SPEEDS[speeds]
    set_link(0, None, bytes_per_s=down)
    set_link(None, 1, bytes_per_s=up)
    set_link(None, 0, bytes_per_s=SLOW_BYTES_PER_S / 4 if needed == "given" else FAST_BYTES_PER_S)
    set_link(1, None, bytes_per_s=SLOW_BYTES_PER_S / 4 if needed == "vacant" else FAST_BYTES_PER_S)
    stage.copy(earlier_source, earlier_target, (*BEFORE, *ring_steps(chunks_before), *AFTER))
    stage.enqueue("producer", values, source)
    stage.enqueue("consumer", target, rescued)
    stage.copy(source, target, steps)
    stage.enqueue("producer", zeros, source)
    stage.enqueue("consumer", target, read)
    stage.finish()
    found = (earlier_target.cpu(), read, rescued)
    return all(torch.equal(ours, right) for ours, right in zip(found, (earlier, values, old), strict=True))


@pytest.mark.parametrize("speeds", SPEEDS)
@pytest.mark.parametrize("slow", ["given", "vacant", ""])
def test_with_every_wait_all_bytes_are_right(stage: Stage, speeds: str, slow: str) -> None:
    assert is_right(stage, speeds, STEPS, slow)


@pytest.mark.parametrize("index", WAITS, ids=name_of)
def test_without_any_one_wait_bytes_are_wrong_every_time(stage: Stage, index: int) -> None:
    event, buffer = STEPS[index].event
    steps = [step for at, step in enumerate(STEPS) if at != index]
    slower = {"full": ["down is slow"], "free": ["up is slow"]}.get(event, list(SPEEDS))
    for speeds in slower:
        for _ in range(REPETITIONS):
            # the copy before ends in this buffer, so that the first round has to wait for just this one
            assert not is_right(stage, speeds, steps, event, chunks_before=BUFFERS + buffer + 1)


def test_copies_of_several_threads_share_a_ring(devices: Devices) -> None:
    set_link(0, None, bytes_per_s=SLOW_BYTES_PER_S * 10)
    sources = [random_bytes(9).to(devices[0]) for _ in range(4)]
    clear_links()
    set_link(0, None, bytes_per_s=SLOW_BYTES_PER_S * 10)
    set_link(None, 1, bytes_per_s=SLOW_BYTES_PER_S * 20)
    targets = [torch.zeros_like(source, device=devices[1]) for source in sources]
    threads = [
        threading.Thread(target=copy_over, args=("HOST", source, target))
        for source, target in zip(sources, targets, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clear_links()
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(source.cpu(), target.cpu())


def test_every_byte_goes_down_and_up_once(devices: Devices) -> None:
    source = random_bytes(40).to(devices[0])
    target = torch.zeros_like(source, device=devices[1])
    before = carried(0, None), carried(None, 1), carried(0, 1)
    copy_over("HOST", source, target)
    after = carried(0, None), carried(None, 1), carried(0, 1)
    assert [now[1] - then[1] for now, then in zip(after, before, strict=True)] == [source.nbytes, source.nbytes, 0]


def test_the_buffers_are_made_once_and_given_back(devices: Devices) -> None:
    release()
    assert rings_nbytes() == 0
    source, target = random_bytes(1).to(devices[0]), torch.zeros(CHUNK, dtype=torch.uint8, device=devices[1])
    ring_between(*devices).copy(source, target)
    ring = ring_between(*devices)
    assert ring_between(*devices) is ring
    assert rings_nbytes() == ring.nbytes == BUFFERS * CHUNK_NBYTES
    ring_between(devices[1], devices[0])
    assert rings_nbytes() == 2 * ring.nbytes
    assert release("cuda") == 0
    assert release("vcard") == 2 * ring.nbytes
    assert rings_nbytes() == 0


def test_nothing_is_freed_under_a_copy_on_its_way(devices: Devices) -> None:
    torch.vcard.reset_hazards()
    values = random_bytes(2)
    set_link(0, None, bytes_per_s=SLOW_BYTES_PER_S)
    set_link(None, 1, bytes_per_s=SLOW_BYTES_PER_S)
    for _ in range(3):
        copy_over("HOST", values.to(devices[0]), torch.zeros(2 * CHUNK, dtype=torch.uint8, device=devices[1]))
    clear_links()
    assert torch.vcard.hazards() == []
