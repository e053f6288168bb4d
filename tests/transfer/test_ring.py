"""The order of work of the bounce ring.

down   [0>a] [1>b] [2>c] [3>a] [4>b]
up           [a>0] [b>1] [c>2] [a>3] [b>4]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.transfer.ring import (
    ARRIVED,
    CHUNK_NBYTES,
    DRAINED,
    GIVEN,
    LEAST_CHUNK_NBYTES,
    VACANT,
    Copy,
    Record,
    Step,
    Wait,
    chunk_nbytes,
    ring_steps,
)

MIB = 1 << 20


def drawing(steps: Sequence[Step]) -> dict[str, list[tuple[int, int]]]:
    """Slot by slot, what each direction copies: as soon as its waits allow, every copy taking one slot.

    Returns (slot, chunk) pairs per direction.
    """
    ends: dict[object, int] = {GIVEN: 0, VACANT: 0}
    busy_until = {"down": 0, "up": 0, "consumer": 0}
    drawn: dict[str, list[tuple[int, int]]] = {"down": [], "up": []}
    for step in steps:
        if isinstance(step, Wait):
            busy_until[step.side] = max(busy_until[step.side], ends.get(step.event, 0))
        elif isinstance(step, Record):
            ends[step.event] = busy_until[step.side]
        else:
            drawn[step.side].append((busy_until[step.side], step.chunk))
            busy_until[step.side] += 1
    return drawn


def test_five_chunks_over_three_buffers_as_drawn() -> None:
    assert drawing(ring_steps(5, 3)) == {
        "down": [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)],
        "up": [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)],
    }


def test_one_buffer_takes_turns() -> None:
    assert drawing(ring_steps(3, 1)) == {"down": [(0, 0), (2, 1), (4, 2)], "up": [(1, 0), (3, 1), (5, 2)]}


@given(chunks=st.integers(1, 40), buffers=st.integers(2, 4))
def test_n_chunks_take_n_plus_one_slots(chunks: int, buffers: int) -> None:
    drawn = drawing(ring_steps(chunks, buffers))
    assert [chunk for _, chunk in drawn["up"]] == list(range(chunks))
    assert drawn["up"][-1][0] + 1 == chunks + 1


@given(chunks=st.integers(1, 40), buffers=st.integers(1, 4))
def test_every_chunk_goes_down_and_up_through_one_buffer(chunks: int, buffers: int) -> None:
    copies = [step for step in ring_steps(chunks, buffers) if isinstance(step, Copy)]
    down, up = ([(c.chunk, c.buffer) for c in copies if c.side == side] for side in ("down", "up"))
    assert down == up == [(chunk, chunk % buffers) for chunk in range(chunks)]


@given(chunks=st.integers(1, 40), buffers=st.integers(1, 4))
def test_every_copy_waits_for_the_one_it_depends_on(chunks: int, buffers: int) -> None:
    """Up reads what down has written; down writes where up has read: each right after a wait for just that."""
    steps = ring_steps(chunks, buffers)
    for before, step in pairwise(steps):
        if isinstance(step, Copy):
            event = ("free", step.buffer) if step.side == "down" else ("full", step.buffer)
            assert before == Wait(step.side, event)


def test_the_ends_are_told() -> None:
    steps = ring_steps(3)
    assert steps[0] == Wait("down", GIVEN)
    first_up = steps.index(Copy("up", 0, 0))
    assert {Record("consumer", VACANT), Wait("up", VACANT)} < set(steps[:first_up])
    assert steps[-2:] == (Record("down", DRAINED), Record("up", ARRIVED))


def test_a_new_target_is_not_waited_for() -> None:
    of_the_target = (Record("consumer", VACANT), Wait("up", VACANT))
    assert ring_steps(3, new_target=True) == tuple(step for step in ring_steps(3) if step not in of_the_target)


def test_the_first_chunk_is_on_its_way_before_the_target_is_thought_of() -> None:
    assert ring_steps(3)[:3] == (Wait("down", GIVEN), Wait("down", ("free", 0)), Copy("down", 0, 0))


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (1, LEAST_CHUNK_NBYTES),
        (2 * MIB, 512 << 10),
        (2 * MIB + 1, (512 << 10) + 512),
        (8 * MIB, 2 * MIB),
        (16 * MIB, CHUNK_NBYTES),
        (1 << 30, CHUNK_NBYTES),
    ],
)
def test_chunks_are_a_quarter_of_small_copies_and_4_mib_of_large_ones(nbytes: int, expected: int) -> None:
    assert chunk_nbytes(nbytes) == expected
