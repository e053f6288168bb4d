"""The way of a collective follows size, number of cards and links."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.transfer.collectives.choice import Crossover, choose, ring_order
from poolrt.units import GIB, KIB, MIB


@pytest.mark.parametrize("nbytes", [0, KIB, GIB])
def test_two_cards_gain_nothing_from_a_second_step(nbytes):
    assert choose(nbytes, 1) == choose(nbytes, 2) == "one shot"


def test_one_step_for_few_bytes_and_two_for_more():
    assert [choose(nbytes, 8) for nbytes in (KIB, 63 * KIB, 64 * KIB, 64 * MIB)] == ["one shot"] * 2 + ["two shots"] * 2
    assert choose(200 * KIB, 4) == "one shot"
    assert choose(200 * KIB, 4, crossover=Crossover(half_speed_nbytes=KIB)) == "two shots"


def test_a_ring_where_links_are_missing_or_shared():
    unlinked = frozenset({(0, 2), (2, 0)})
    assert choose(64 * MIB, 4, unlinked) == "ring"
    assert choose(KIB, 4, unlinked) == "one shot"
    assert choose(64 * MIB, 4, crossover=Crossover(ring_from_nbytes=64 * MIB)) == "ring"
    assert choose(63 * MIB, 4, crossover=Crossover(ring_from_nbytes=64 * MIB)) == "two shots"


def test_a_ring_keeps_to_the_links():
    """Two bridged pairs, 0-1 and 2-3: only two steps of the ring can be without a link."""
    pairs = {frozenset((0, 1)), frozenset((2, 3))}
    unlinked = frozenset(pair for pair in permutations(range(4), 2) if frozenset(pair) not in pairs)
    assert ring_order(4, unlinked) == (0, 1, 2, 3)
    crossed = frozenset(pair for pair in permutations(range(4), 2) if frozenset(pair) not in ({0, 2}, {1, 3}))
    order = ring_order(4, crossed)
    assert sum(pair in crossed for pair in pairwise((*order, order[0]))) == 2
    assert ring_order(3) == (0, 1, 2)


@given(
    st.integers(2, 5).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(list(permutations(range(n), 2)))))
    )
)
def test_no_order_needs_fewer_pairs_without_a_link(drawn):
    cards, unlinked = drawn

    def missing(order):
        return sum(pair in unlinked for pair in pairwise((*order, order[0])))

    order = ring_order(cards, frozenset(unlinked))
    assert sorted(order) == list(range(cards))
    assert missing(order) == min(map(missing, permutations(range(cards))))
