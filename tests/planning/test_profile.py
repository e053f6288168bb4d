import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.planning.profile import call_path, micro_batch_sizes


@given(st.integers(1, 100), st.integers(1, 100))
def test_micro_batches_hold_every_sample_and_differ_by_one_at_most(batch_size, micro_batches):
    sizes = micro_batch_sizes(batch_size, micro_batches)
    assert len(sizes) == micro_batches
    assert sum(sizes) == batch_size
    assert sizes == tuple(sorted(sizes, reverse=True))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("cards", "path"),
    [((0, 0, 0), (0,)), ((0, 0, 1, 1), (0, 1)), ((0, 1, 0), (0, 1, 0)), ((1, 1, 0), (1, 0))],
)
def test_consecutive_calls_on_a_card_are_one_visit(make_chain, cards, path):
    profile = make_chain(blocks=len(cards))
    assert call_path(profile.calls, {f"block.{index}": card for index, card in enumerate(cards)}) == path


def test_what_depends_on_the_batch_grows_with_it(make_chain):
    profile = make_chain(batch_size=4)
    twice = profile.scaled(8)
    assert twice.batch_size == 8
    assert twice.layers == profile.layers
    for before, after in zip(profile.calls, twice.calls, strict=True):
        assert after.saved_nbytes == 2 * before.saved_nbytes
        assert after.output_nbytes == 2 * before.output_nbytes
        assert after.forward_s == 2 * before.forward_s
    assert twice.scaled(4) == profile


def test_a_layer_is_found_by_its_name(make_chain):
    profile = make_chain(blocks=3)
    assert profile.layer("block.1") is profile.layers[1]
