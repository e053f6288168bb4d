import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(
    answer=st.integers(0, 300),
    limit=st.integers(1, 300),
    step=st.integers(1, 9),
    guess=st.integers(0, 400),
)
def test_finds_the_largest_multiple_that_works_and_asks_little(answer: int, limit: int, step: int, guess: int) -> None:
    from searching import largest_that_works

    asked = []

    def works(count: int) -> bool:
        asked.append(count)
        return count <= answer

    found = largest_that_works(works, limit, step, guess)
    assert found == min(answer, limit) // step * step
    assert len(asked) == len(set(asked))
    assert all(count <= limit and count % step == 0 for count in asked)


#   from nothing    works:   1  2  4  8        the strides stop at 16
#                   fails:               16
#                   then     12 (works)  14 (fails)  13 (works)  -> 13
#
#   from a guess    12 (works)  13 (works)  15 (fails)  14 (fails)  -> 13
def test_order_of_the_questions() -> None:
    from searching import largest_that_works

    asked: list[int] = []
    assert largest_that_works(lambda count: not asked.append(count) and count <= 13, limit=100) == 13
    assert asked == [1, 2, 4, 8, 16, 12, 14, 13]
    asked.clear()
    assert largest_that_works(lambda count: not asked.append(count) and count <= 13, limit=100, guess=12) == 13
    assert asked == [12, 13, 15, 14]
    asked.clear()
    assert largest_that_works(lambda count: not asked.append(count) and count <= 13, limit=100, guess=17) == 13
    assert asked == [17, 16, 14, 10, 12, 13]


def test_what_is_not_an_out_of_memory_is_not_swallowed() -> None:
    from searching import largest_that_works

    def works(count: int) -> bool:
        raise ValueError(count)

    with pytest.raises(ValueError, match="1"):
        largest_that_works(works, limit=4)
