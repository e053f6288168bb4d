"""Overlap is found from addresses alone, and neither missed nor seen where there is none. Brute force is the oracle."""

from itertools import product

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.layout import Layout
from poolrt.transfer.overlap import refuse_overlap, repeats, runs_overlap, share_memory


def layouts():
    def made(drawn):
        address, nbytes, dimensions = drawn
        shape, strides = zip(*dimensions, strict=True) if dimensions else ((), ())
        return Layout(address=1000 + address, item_nbytes=nbytes, shape=shape, strides=strides)

    dimension = st.tuples(st.integers(0, 4), st.integers(-6, 6))
    return st.tuples(st.integers(0, 30), st.sampled_from([1, 2, 4]), st.lists(dimension, max_size=3)).map(made)


def element_addresses(layout: Layout) -> list[int]:
    return [
        layout.address + layout.item_nbytes * sum(i * s for i, s in zip(index, layout.strides, strict=True))
        for index in product(*map(range, layout.shape))
    ]


def addresses(layout: Layout) -> set[int]:
    return {at + byte for at in element_addresses(layout) for byte in range(layout.item_nbytes)}


@given(layouts(), layouts())
def test_shared_bytes(one, other):
    assert share_memory(one, other) == bool(addresses(one) & addresses(other))


@given(layouts())
def test_an_element_held_twice(layout):
    every = element_addresses(layout)
    assert repeats(layout) == (len(set(every)) < len(every))


def test_what_would_take_too_long_to_know_counts_as_held_twice():
    odd = Layout(address=0, item_nbytes=1, shape=(2, 3), strides=(3, 2))
    assert not repeats(odd)
    assert repeats(Layout(address=0, item_nbytes=1, shape=(2, 2_000_001), strides=(3, 2)))


@pytest.mark.parametrize("strides", [(12, 4, 1), (1, 2, 6), (100, -10, 2)])
def test_ordinary_strides_hold_nothing_twice(strides):
    assert not repeats(Layout(address=0, item_nbytes=4, shape=(2, 3, 4), strides=strides))


def test_what_would_be_left_to_chance_is_refused():
    def run(address, strides=(1,)):
        return Layout(address=address, item_nbytes=4, shape=(8,), strides=strides)

    refuse_overlap(run(64), run(96))
    refuse_overlap(run(64, (2,)), run(68, (2,)))
    with pytest.raises(ConfigurationError):
        refuse_overlap(run(64), run(92))
    with pytest.raises(ConfigurationError):
        refuse_overlap(run(64, (0,)), run(128))


runs = st.lists(st.tuples(st.integers(0, 60), st.integers(40, 120), st.integers(0, 6)), max_size=6)


@given(runs)
def test_runs(drawn):
    targets = [set(range(to, to + nbytes)) for to, _, nbytes in drawn]
    sources = set().union(*(range(at, at + nbytes) for _, at, nbytes in drawn))
    written = set().union(*targets)
    expected = len(written) < sum(map(len, targets)) or bool(written & sources)
    assert runs_overlap(numpy.array(drawn, numpy.int64).reshape(-1, 3)) == expected
