"""A walk visits what the two tensors hold, element by element, in as few dimensions as will do. NumPy is the oracle."""

from math import prod

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.walk import Walk, walk_of
from poolrt.transfer.layout import Layout


def layout(shape, strides, address=0, item_nbytes=1):
    return Layout(address=address, item_nbytes=item_nbytes, shape=tuple(shape), strides=tuple(strides))


def visited(walk: Walk, items: int = 1) -> list[tuple[int, int]]:
    """The pairs of positions (target, source) that a kernel goes through; a pack counts as its items."""
    pairs = []
    for index in numpy.ndindex(*walk.extents):
        to = walk.target_start + sum(i * s for i, s in zip(index, walk.target_strides, strict=True))
        at = walk.source_start + sum(i * s for i, s in zip(index, walk.source_strides, strict=True))
        pairs += [(to + item, at + item) for item in range(items)]
    return pairs


def elements(side: Layout) -> list[int]:
    """The position of every element in order of indices, counted from the lowest."""
    lowest = side.first_address - side.address
    return [
        (sum(i * s for i, s in zip(index, side.strides, strict=True)) * side.item_nbytes - lowest) // side.item_nbytes
        for index in numpy.ndindex(*side.shape)
    ]


@st.composite
def shapes_and_strides(draw):
    shape = draw(st.lists(st.integers(1, 4), max_size=6))
    both = []
    for _ in range(2):
        order, step, strides = draw(st.permutations(range(len(shape)))), 1, [0] * len(shape)
        for dimension in order:
            strides[dimension] = step * draw(st.sampled_from([1, 1, -1]))
            step = step * shape[dimension] + draw(st.sampled_from([0, 0, 2]))
        both.append(strides)
    for dimension in draw(st.sets(st.integers(0, max(len(shape) - 1, 0)))):
        if shape:
            both[1][dimension] = 0
    return shape, *both


@given(shapes_and_strides())
def test_a_walk_pairs_the_elements_that_belong_together(drawn):
    shape, target_strides, source_strides = drawn
    target, source = layout(shape, target_strides), layout(shape, source_strides)
    walk = walk_of(target, source)
    assert sorted(visited(walk)) == sorted(zip(elements(target), elements(source), strict=True))
    assert walk.packs == prod(shape)
    assert walk.highest_position == max(max(pair) for pair in visited(walk))
    assert len(walk.extents) <= max(1, len(shape))


@given(shapes_and_strides(), st.sampled_from([2, 4]))
def test_packs_wider_and_narrower_items_are_the_same_bytes(drawn, items):
    shape, target_strides, source_strides = drawn
    walk = walk_of(layout(shape, target_strides), layout(shape, source_strides))
    every = sorted(visited(walk))
    narrower = walk.in_narrower_items(items)
    assert sorted(visited(narrower)) == sorted(
        (to * items + i, at * items + i) for to, at in every for i in range(items)
    )
    if walk.takes_together(items):
        assert sorted(visited(walk.in_packs(items), items)) == every
        wider = sorted(visited(walk.in_wider_items(items)))
        assert sorted((to * items + i, at * items + i) for to, at in wider for i in range(items)) == every
    assert narrower.takes_together(items)


def test_the_drawing():
    """Shape (4, 3, 8), target strides (24, 8, 1), source strides (1, 32, 4): two dimensions are one."""
    walk = walk_of(layout((4, 3, 8), (24, 8, 1)), layout((4, 3, 8), (1, 32, 4)))
    assert walk == Walk(extents=(4, 24), target_strides=(24, 1), source_strides=(1, 4))


@pytest.mark.parametrize(
    ("shape", "target", "source", "expected"),
    [
        ((), (), (), Walk(extents=(1,), target_strides=(1,), source_strides=(1,))),
        ((1, 1), (7, 9), (3, 5), Walk(extents=(1,), target_strides=(1,), source_strides=(1,))),
        ((2, 3, 4), (12, 4, 1), (12, 4, 1), Walk(extents=(24,), target_strides=(1,), source_strides=(1,))),
        ((3, 2), (1, 3), (1, 3), Walk(extents=(6,), target_strides=(1,), source_strides=(1,))),
        ((5, 4), (4, 1), (0, 1), Walk(extents=(5, 4), target_strides=(4, 1), source_strides=(0, 1))),
        ((5, 4), (4, 1), (0, 0), Walk(extents=(20,), target_strides=(1,), source_strides=(0,))),
        ((6,), (-1,), (-1,), Walk(extents=(6,), target_strides=(1,), source_strides=(1,))),
        ((6,), (1,), (-2,), Walk(extents=(6,), target_strides=(1,), source_strides=(-2,), source_start=10)),
    ],
    ids=[
        "one number",
        "ones",
        "contiguous",
        "both transposed",
        "rows repeated",
        "one repeated",
        "both back",
        "one back",
    ],
)
def test_walks_of_common_copies(shape, target, source, expected):
    assert walk_of(layout(shape, target), layout(shape, source)) == expected


def test_dimensions_that_cannot_be_joined_are_refused_beyond_eight():
    shape, alone = (2,) * 9, tuple(3**i for i in range(9))
    with pytest.raises(ConfigurationError):
        walk_of(layout(shape, alone), layout(shape, alone[::-1]))
    assert len(walk_of(layout(shape[1:], alone[1:]), layout(shape[1:], alone[:0:-1])).extents) == 8


def test_a_layout_knows_its_first_and_last_byte():
    turned = layout((3, 2), (-4, 1), address=1000, item_nbytes=8)
    assert (turned.first_address, turned.end_address) == (1000 - 64, 1016)
    empty = layout((3, 0), (4, 1), address=1000, item_nbytes=8)
    assert (empty.elements, empty.first_address, empty.end_address) == (0, 1000, 1000)
