"""Scattering and gathering are each other's inverse, run by run.

    whole      rows 0..3 | 4..7 | 8..11        split along 0: card 0 holds 0..1, 4..5 and 8..9, card 1 the others
    piece 0    0 1 | 4 5 | 8 9
    piece 1    2 3 | 6 7 | 10 11

Any deal of indices goes through the same code, also one with some indices on several cards.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.sharding import Run, Sharding, copy_in_chunks, dense_strides

CPU = torch.device("cpu")
DRAWING = Split(dim=0, pieces=(((0, 2), (4, 6), (8, 10)), ((2, 4), (6, 8), (10, 12))))


def test_the_drawing() -> None:
    sharding = Sharding((12, 1), DRAWING, (CPU, CPU))
    whole = torch.arange(12).view(12, 1)
    first, second = sharding.scatter(whole)
    assert first.flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert second.flatten().tolist() == [2, 3, 6, 7, 10, 11]
    assert sharding.runs[1] == (Run(2, 0, 2), Run(6, 2, 2), Run(10, 4, 2))
    assert torch.equal(sharding.gather([first, second], torch.empty_like(whole)), whole)


@st.composite
def shardings(draw: st.DrawFn) -> Sharding:
    """Any deal of up to nine indices among up to four cards, some on several."""
    size, cards = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    holders = [draw(st.sets(st.integers(0, cards - 1), min_size=1)) for _ in range(size)]
    dim = draw(st.integers(0, 2))
    split = Split.from_indices([[i for i in range(size) if card in holders[i]] for card in range(cards)], dim)
    shape = [2, 3, 2]
    shape[dim] = size
    return Sharding(tuple(shape), split, (CPU,) * cards)


@settings(max_examples=60)
@given(shardings(), st.permutations([0, 1, 2]))
def test_what_is_scattered_can_be_gathered(sharding: Sharding, order: list[int]) -> None:
    whole = torch.randn([sharding.shape[dim] for dim in order]).permute([order.index(dim) for dim in range(3)])
    assert tuple(whole.shape) == sharding.shape
    pieces = sharding.scatter(whole)
    for card, piece in enumerate(pieces):
        assert tuple(piece.shape) == sharding.piece_shape(card)
        assert torch.equal(piece, whole[tuple(_index(sharding, card))])
        assert torch.equal(piece, sharding.cut(whole, card))
    assert torch.equal(sharding.gather(pieces, torch.empty(sharding.shape)), whole)
    owned = sum(sharding.owned_part(piece, card).sum() for card, piece in enumerate(pieces))
    torch.testing.assert_close(owned, whole.sum())


def _index(sharding: Sharding, card: int) -> list:
    index: list = [slice(None)] * 3
    index[sharding.split.dim] = sharding.split.indices(card)
    return index


@settings(max_examples=60)
@given(shardings())
def test_shared_runs_are_what_several_hold(sharding: Sharding) -> None:
    held = [sharding.split.indices(card) for card in sharding.cards]
    expected = {i: [card for card in sharding.cards if i in held[card]] for i in range(sharding.split.size)}
    found = {}
    for run in sharding.shared:
        for step in range(run.length):
            (index,) = {held[card][place + step] for card, place in run.holders}
            found[index] = [card for card, _ in run.holders]
    assert found == {index: cards for index, cards in expected.items() if len(cards) > 1}


@given(st.permutations([0, 1, 2]), st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4)))
def test_dense_strides_are_those_of_a_tensor_in_that_order(order: list[int], sizes: tuple[int, ...]) -> None:
    made = torch.empty([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(3)])
    assert dense_strides(made.shape, made.stride()) == made.stride()
    assert dense_strides(made.shape, made[:1].expand(made.shape).stride())[0] in (1, made.stride()[0])


def test_a_tensor_that_is_expanded_is_scattered_in_full() -> None:
    pieces = Sharding((4, 3), Split.from_counts((1, 3)), (CPU, CPU)).scatter(torch.ones(()).expand(4, 3))
    assert [piece.stride() for piece in pieces] == [(3, 1), (3, 1)]


@pytest.mark.parametrize("chunk_nbytes", [1, 8, 40, 1 << 20])
def test_a_copy_in_chunks_copies_all(chunk_nbytes: int) -> None:
    source = torch.randn(7, 10).t()
    target = torch.zeros(10, 7)
    copy_in_chunks(target, source, chunk_nbytes)
    assert torch.equal(target, source)
    number = torch.zeros(())
    copy_in_chunks(number, torch.ones((), dtype=torch.float64), 1)
    assert number.item() == 1.0


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="2 cards cannot lie on 1 devices"):
        Sharding((12, 1), DRAWING, (CPU,))
    with pytest.raises(ConfigurationError, match="12 indices does not fit"):
        Sharding((11, 1), DRAWING, (CPU, CPU))
    with pytest.raises(ConfigurationError, match="dimension 0"):
        Sharding((), DRAWING, (CPU, CPU))
