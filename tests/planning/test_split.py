import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split, apportion

FUSED = Split(dim=0, pieces=(((0, 2), (4, 6), (8, 10)), ((2, 4), (6, 8), (10, 12))))
GROUPED = Split(dim=0, pieces=(((0, 2),), ((0, 2),), ((2, 4),), ((2, 4),)), replicated=((0, 4),))


def test_a_fused_weight_has_three_ranges_per_card():
    """
    row       0    4    8    12
              q....|k....|v....
    card 0    00.. |00.. |00..
    card 1    ..11 |..11 |..11
    """
    assert (FUSED.cards, FUSED.size, FUSED.piece_sizes) == (2, 12, (6, 6))
    assert FUSED.is_disjoint
    assert not FUSED.is_whole
    assert FUSED.take("qQwWkKlLvVbB", 0) == list("qQkKvV")
    assert FUSED.take("qQwWkKlLvVbB", 1) == list("wWlLbB")
    assert FUSED.indices(1) == [2, 3, 6, 7, 10, 11]


def test_fewer_heads_than_cards_are_held_twice():
    assert GROUPED.piece_sizes == (2, 2, 2, 2)
    assert not GROUPED.is_disjoint
    assert [GROUPED.owned(card) for card in range(4)] == [((0, 2),), (), ((2, 4),), ()]
    assert GROUPED.put_together(["ab", "ab", "cd", "cd"]) == list("abcd")


def test_everything_on_every_card():
    split = Split.whole(5, cards=3, dim=1)
    assert split.is_whole
    assert split.piece_sizes == (5, 5, 5)
    assert [split.owned(card) for card in range(3)] == [((0, 5),), (), ()]
    assert Split.whole(0, cards=2).size == 0


def test_unequal_cards_get_unequal_pieces():
    """Size 12, granule 2, shares 2 : 1      000000001111"""
    split = Split.from_shares(12, [2, 1], granule=2)
    assert split == Split(dim=0, pieces=(((0, 8),), ((8, 12),)))
    assert apportion(4, [24, 24, 24]) == (2, 1, 1)
    assert apportion(16, [1000, 1], granule=4) == (12, 4)


def test_a_piece_is_an_index_of_an_array():
    array = np.arange(24).reshape(2, 12)
    split = Split(dim=1, pieces=FUSED.pieces)
    assert array.take(split.indices(1), axis=split.dim).tolist() == [[2, 3, 6, 7, 10, 11], [14, 15, 18, 19, 22, 23]]


def test_a_part_of_the_dimension_within_a_piece():
    assert FUSED.within(1, 4, 8) == ((2, 4),)
    assert FUSED.within(0, 1, 9) == ((1, 5),)
    assert FUSED.within(0, 2, 4) == ()


@pytest.mark.parametrize(
    ("pieces", "replicated"),
    [
        ((((0, 2),), ((3, 4),)), ()),  # a gap
        ((((0, 3),), ((2, 4),)), ()),  # an overlap that nobody meant
        ((((0, 3),), ((1, 4),)), ((2, 3),)),  # one that is meant in part
        ((((2, 4), (0, 2)), ((4, 6),)), ()),  # out of order
        ((((0, 0),), ((0, 2),)), ()),  # empty
        ((((-1, 2),),), ()),
        ((), ()),
    ],
)
def test_what_is_no_split_is_refused(pieces, replicated):
    with pytest.raises(ConfigurationError):
        Split(dim=0, pieces=pieces, replicated=replicated)


@pytest.mark.parametrize(
    ("size", "shares", "granule"), [(12, [1, 1], 5), (4, [1, 1, 1], 2), (4, [1, 0], 1), (4, [1, 1], 0)]
)
def test_what_cannot_be_dealt_out_is_refused_with_its_values(size, shares, granule):
    with pytest.raises(ConfigurationError, match=str(size)):
        Split.from_shares(size, shares, granule)


@pytest.mark.parametrize("form", [{}, {"dim": 0, "pieces": [[1, 2]]}, {"dim": 0, "pieces": [[[1, 2]]]}, {"dim": "x"}])
def test_json_that_is_no_split_is_refused(form):
    with pytest.raises(ConfigurationError):
        Split.from_json(form)


@st.composite
def dealings(draw):
    """Each index to one card or several."""
    cards, size = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    holders = draw(
        st.lists(
            st.sets(st.integers(0, cards - 1), min_size=1, max_size=draw(st.integers(1, cards))),
            min_size=size,
            max_size=size,
        )
    )
    return [[index for index, held in enumerate(holders) if card in held] for card in range(cards)]


@given(dealings())
def test_any_dealing_is_a_split_and_comes_back_whole(indices):
    split = Split.from_indices(indices, dim=2)
    values = [f"v{index}" for index in range(split.size)]
    assert [split.indices(card) for card in range(split.cards)] == indices
    assert split.put_together([split.take(values, card) for card in range(split.cards)]) == values
    assert split.is_disjoint == (sum(map(len, indices)) == split.size)
    assert Split.from_json(split.to_json()) == split
    owned = sorted(
        index for card in range(split.cards) for start, stop in split.owned(card) for index in range(start, stop)
    )
    assert owned == list(range(split.size))


@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), more=st.integers(0, 40), granule=st.integers(1, 7)
)
def test_shares_are_met_to_a_granule_where_no_card_is_too_small(shares, more, granule):
    units = len(shares) + more
    counts = apportion(units * granule, shares, granule)
    assert sum(counts) == units * granule
    assert all(count >= granule and count % granule == 0 for count in counts)
    wanted = [share / sum(shares) * units for share in shares]
    if min(wanted) >= 1:
        assert all(abs(count / granule - want) <= 1 for count, want in zip(counts, wanted, strict=True))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
def test_runs_of_given_lengths(counts):
    assert Split.from_counts(counts).piece_sizes == tuple(counts)
