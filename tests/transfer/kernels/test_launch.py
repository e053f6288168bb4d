"""Which kernel a copy becomes: plain values, asserted without a card."""

from dataclasses import replace
from math import prod

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.launch import CHUNK_NBYTES, Lanes, element_nbytes, plan_add, plan_copy, plan_many
from poolrt.transfer.kernels.source import kernel_source
from poolrt.transfer.layout import Layout

LANES = Lanes()


def layout(shape, strides=None, nbytes=4, address=1 << 20):
    contiguous = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    return Layout(address=address, item_nbytes=nbytes, shape=tuple(shape), strides=tuple(strides or contiguous))


def copy_of(target, source, types=("float32", "float32")):
    return plan_copy(target, types[0], source, types[1], LANES)


def test_neighbours_all_along_are_bytes():
    (launch,) = copy_of(layout((3, 5)), layout((3, 5), address=1 << 21))
    assert (launch.kernel, launch.count, launch.walk) == ("copy_bytes", 60, None)
    (launch,) = copy_of(layout((3, 5), (1, 3)), layout((3, 5), (1, 3)))
    assert launch.kernel == "copy_bytes"


def test_nothing_is_launched_for_no_elements():
    assert copy_of(layout((3, 0)), layout((3, 0))) == ()
    assert plan_add(layout((0,)), "float32", layout((0,)), "float32", LANES) == ()
    assert plan_many(numpy.array([(0, 64, 0)]), LANES) is None
    assert plan_many(numpy.empty((0, 3), numpy.int64), LANES) is None


@pytest.mark.parametrize(
    ("columns", "row", "address", "word"),
    [(8, 16, 0, "word128"), (8, 16, 8, "word64"), (6, 16, 0, "word64"), (8, 15, 0, "word32"), (5, 16, 0, "word32")],
    ids=["all fits", "address", "columns", "odd rows", "odd columns"],
)
def test_columns_are_moved_in_the_widest_words_that_fit(columns, row, address, word):
    (launch,) = copy_of(layout((9, columns)), layout((9, columns), (row, 1), address=address))
    assert (launch.kernel, launch.types) == ("copy_strided", (word, word))
    assert launch.count * element_nbytes(word) == 9 * columns * 4


def test_an_odd_address_of_one_type_is_moved_in_narrower_words():
    (launch,) = copy_of(layout((4, 2)), layout((4, 2), (1, 4), address=3))
    assert launch.types == ("word8", "word8")
    assert launch.count == 32


def test_a_conversion_takes_packs_of_16_bytes_and_the_rest_by_itself():
    types = ("float32", "bfloat16")
    whole, rest = copy_of(layout((4099,)), layout((4099,), nbytes=2), types)
    assert (whole.types, whole.items, whole.count) == (("bfloat16", "float32"), 4, 1024)
    assert (rest.items, rest.count) == (1, 3)
    assert rest.target_address == whole.target_address + 4096 * 4
    assert rest.source_address == whole.source_address + 4096 * 2
    (launch,) = copy_of(layout((3, 8)), layout((3, 8), (16, 1), nbytes=2), types)
    assert (launch.items, launch.count) == (4, 6)
    (launch,) = copy_of(layout((3, 8)), layout((3, 8), (16, 1), nbytes=2, address=2), types)
    assert launch.items == 1


def test_a_conversion_at_an_odd_address_is_refused():
    with pytest.raises(ConfigurationError):
        copy_of(layout((4,)), layout((4,), nbytes=2, address=3), ("float32", "bfloat16"))


def test_types_and_shapes_that_torch_refuses_are_refused():
    with pytest.raises(ConfigurationError):
        plan_add(layout((4,)), "int32", layout((4,)), "float32", LANES)
    with pytest.raises(ConfigurationError):
        copy_of(layout((4,)), layout((2, 2)))
    with pytest.raises(ConfigurationError):
        copy_of(layout((4,)), layout((4,), nbytes=1), ("float32", "float8_e4m3fn"))
    (launch,) = copy_of(layout((4,), nbytes=1), layout((4,), nbytes=1), ("float8_e4m3fn", "float8_e4m3fn"))
    assert launch.kernel == "copy_bytes"


def test_positions_beyond_2_to_the_31_take_64_bits():
    (launch,) = copy_of(layout((3, 1 << 29)), layout((3, 1 << 29), ((1 << 29) + 1, 1)))
    assert launch.wide is False
    (launch,) = copy_of(layout((5, 1 << 29)), layout((5, 1 << 29), ((1 << 29) + 1, 1)))
    assert launch.wide is True
    (launch,) = copy_of(layout((2, 2)), layout((2, 2), (1, 1 << 31)))
    assert launch.wide is True


@given(st.integers(1, 1 << 40))
def test_threads_are_enough_or_as_many_as_allowed(turns):
    lanes = Lanes(threads=128, most_blocks=1000)
    blocks = lanes.blocks(turns)
    assert 1 <= blocks <= 1000
    assert blocks == 1000 or (blocks - 1) * 128 < turns <= blocks * 128


@given(st.lists(st.integers(0, 3 * CHUNK_NBYTES), min_size=1, max_size=20))
def test_the_chunks_of_many_runs_are_numbered_one_after_another(sizes):
    runs, address = [], 1 << 20
    for nbytes in sizes:
        runs.append((address, (1 << 30) - address, nbytes))
        address += nbytes + 1
    launch = plan_many(numpy.array(runs), LANES)
    live = [run for run in runs if run[2]]
    if not live:
        assert launch is None
        return
    assert launch.table.dtype == numpy.int64
    targets, sources, nbytes, first = launch.table.tolist()
    assert [to + launch.target_address for to in targets] == [run[0] for run in live]
    assert [at + launch.source_address for at in sources] == [run[1] for run in live]
    assert list(nbytes) == [run[2] for run in live]
    ends = [*first[1:], launch.chunks]
    for size, begin, end in zip(nbytes, first, ends, strict=True):
        assert (end - begin - 1) * CHUNK_NBYTES < size <= (end - begin) * CHUNK_NBYTES
    assert min(targets) == min(sources) == 0


def test_both_sides_agree_on_the_size_of_a_chunk():
    assert f"kChunkBytes = {CHUNK_NBYTES // 1024} * 1024;" in kernel_source()


def test_launches_are_values():
    first = copy_of(layout((4, 2)), layout((4, 2), (1, 4)))
    assert first == copy_of(layout((4, 2)), layout((4, 2), (1, 4)))
    assert replace(first[0], blocks=7) != first[0]
