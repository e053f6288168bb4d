import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.planning.granules import (
    GRANULE,
    SMALL,
    Blocks,
    granules_within,
    trained_blocks,
    weight_blocks,
    whole_granules,
)
from poolrt.planning.profile import LayerFacts

MIB = 1 << 20


def layer(trained=(), frozen=(), known=True):
    return LayerFacts(
        name="layer",
        weight_nbytes=sum(trained) + sum(frozen),
        trainable_nbytes=sum(trained),
        largest_gradient_nbytes=max(trained, default=0),
        trained_tensors=trained if known else (),
        frozen_tensors=frozen if known else (),
    )


def test_large_tensors_have_granules_of_their_own_and_small_ones_share():
    """
    granules      |-------|-------|-------|
    a large one   ###########.....                 3 MiB
    small ones                    a b cc d         100, 512, 513 bytes and 1 MiB
    """
    blocks = trained_blocks(layer((3 * MIB, 100, 512, 513, MIB)))
    assert blocks == Blocks(large=4 * MIB, small=512 + 512 + 1024 + MIB)
    assert blocks.nbytes == 6 * MIB


def test_a_layer_s_weights_are_those_that_are_trained_and_the_others():
    assert weight_blocks(layer((2 * MIB,), (3 * MIB, 512))) == Blocks(large=6 * MIB, small=512)


def test_copies_share_their_last_granules():
    small = Blocks(small=SMALL)
    assert (small * 2).nbytes == (small + small).nbytes == GRANULE
    assert (small * 3).nbytes == 2 * GRANULE
    assert Blocks().nbytes == 0


@given(size=st.integers(1, 9 * MIB), count=st.integers(1, 20), frozen=st.integers(0, 20))
def test_where_tensors_are_not_known_equal_ones_are_never_taken_for_less(size, count, frozen):
    known, unknown = (layer((size,) * count, (size,) * frozen, known=known) for known in (True, False))
    assert trained_blocks(unknown).nbytes >= trained_blocks(known).nbytes
    assert weight_blocks(unknown).nbytes >= weight_blocks(known).nbytes
    allowance = (count + frozen + 2) * GRANULE
    assert weight_blocks(unknown).nbytes <= unknown.weight_nbytes + allowance


@pytest.mark.parametrize("nbytes", [0, 1, GRANULE - 1, GRANULE, GRANULE + 1])
def test_rounding_up_and_down_differ_by_less_than_a_granule(nbytes):
    assert granules_within(nbytes) <= nbytes <= whole_granules(nbytes) < nbytes + GRANULE
    assert granules_within(-nbytes - 1) == 0
