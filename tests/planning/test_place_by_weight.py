import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.planning.place_by_weight import place_by_weight
from poolrt.planning.profile import LayerFacts
from poolrt.topology.build import virtual_topology


def place(weights, memory):
    layers = [LayerFacts(name=str(i), weight_nbytes=nbytes, trainable_nbytes=0) for i, nbytes in enumerate(weights)]
    return list(place_by_weight(layers, virtual_topology(memory)).values())


@pytest.mark.parametrize(
    ("weights", "memory", "cards"),
    [
        ([1, 1, 1, 1], [10, 10], [0, 0, 1, 1]),
        ([3, 2, 7, 3], [8, 7], [0, 0, 1, 1]),
        ([1, 1, 1, 1], [30, 10], [0, 0, 0, 1]),
        ([8, 1, 1, 1], [10, 10], [0, 1, 1, 1]),
        ([0, 0, 0, 0], [10, 10], [0, 0, 1, 1]),
        ([5], [10, 10, 10], [1]),
    ],
)
def test_a_layer_goes_where_its_middle_lies(weights, memory, cards):
    assert place(weights, memory) == cards


@given(st.lists(st.integers(0, 99), min_size=1), st.lists(st.integers(1, 99), min_size=1, max_size=16))
def test_runs_are_contiguous_and_no_card_is_over_by_more_than_half_a_layer_at_each_end(weights, memory):
    cards = place(weights, memory)
    assert cards == sorted(cards)
    assert set(cards) <= set(range(len(memory)))
    counted = [max(1, nbytes) for nbytes in weights]
    for card, nbytes in enumerate(memory):
        here = sum(weight for weight, placed in zip(counted, cards, strict=True) if placed == card)
        assert here <= sum(counted) * nbytes / sum(memory) + max(counted) + 1e-6
