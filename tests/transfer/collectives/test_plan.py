"""Plans of collectives, carried out with words instead of numbers: every sum shows the order of its terms.

One shot and two shots add in the order of the cards; a ring turns the order round, piece by piece:

             starts        to the next card      and so on      round again
    card 0   c0            b2+b0                 a1+a2+a0       a b c
    card 1   a1            c0+c1                 b2+b0+b1       a b c
    card 2   b2            a1+a2                 c0+c1+c2       a b c
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.collectives import plan as plans
from poolrt.transfer.collectives.plan import Added, CollectivePlan, Given, Sent, cut

CARDS = st.integers(1, 8)
ELEMENTS = st.integers(0, 40)


def carried_out(plan: CollectivePlan, brought: list[list[str]]) -> list[list[str]]:
    """Per card: the elements of its result, each in words such as x0+x1. Refuses what no machine could do."""
    held: list[tuple[int, list[str]]] = []
    for value in plan.values:
        if isinstance(value, Given):
            assert value.begin == value.end or value.end <= len(brought[value.card])
            held.append((value.card, brought[value.card][value.begin : value.end]))
        elif isinstance(value, Sent):
            source, words = held[value.value]
            assert source != value.card, "a copy within a card"
            assert words, "a copy of nothing"
            held.append((value.card, words))
        else:
            homes, terms = zip(*(held[number] for number in value.values), strict=True)
            assert len(set(homes)) == 1, "a sum of several cards"
            assert len(terms) > 1
            held.append((homes[0], ["+".join(words) for words in zip(*terms, strict=True)]))
    for card, numbers in enumerate(plan.results):
        assert all(held[number][0] == card for number in numbers), "a result on another card"
    return [[word for number in numbers for word in held[number][1]] for numbers in plan.results]


def cards_with(cards: int, elements: int) -> list[list[str]]:
    return [[f"{card}:{element}" for element in range(elements)] for card in range(cards)]


def sums(cards: int, elements: int) -> list[str]:
    return ["+".join(f"{card}:{element}" for card in range(cards)) for element in range(elements)]


def in_any_order(words: list[str]) -> list[Counter[str]]:
    return [Counter(word.split("+")) for word in words]


@given(CARDS, ELEMENTS)
def test_one_shot_and_two_shots_add_in_the_order_of_the_cards(cards, elements):
    brought, expected = cards_with(cards, elements), sums(cards, elements)
    for plan in (plans.all_reduce_one_shot(cards, elements), plans.all_reduce_two_shot(cards, elements)):
        assert carried_out(plan, brought) == [expected] * cards


@given(CARDS.flatmap(lambda cards: st.permutations(range(cards))), ELEMENTS)
def test_a_ring_adds_everything_once_and_all_cards_get_the_same_bits(order, elements):
    cards = len(order)
    first, *others = carried_out(plans.all_reduce_ring(order, elements), cards_with(cards, elements))
    assert in_any_order(first) == in_any_order(sums(cards, elements))
    assert all(other == first for other in others)


def test_the_ring_of_the_drawing():
    plan = plans.all_reduce_ring((0, 1, 2), 3)
    brought = [[f"{letter}{card}" for letter in "abc"] for card in range(3)]
    assert carried_out(plan, brought) == [["a1+a2+a0", "b2+b0+b1", "c0+c1+c2"]] * 3
    after_a_step = [value for value in plan.values if isinstance(value, Added)][:3]
    assert [plan.card_of(plan.values.index(value)) for value in after_a_step] == [2, 0, 1]


@given(CARDS.flatmap(lambda cards: st.tuples(st.permutations(range(cards)), st.integers(0, cards - 1))), ELEMENTS)
def test_a_reduction_ends_on_its_root_alone(order_and_root, elements):
    order, root = order_and_root
    cards, brought = len(order), cards_with(len(order), elements)
    expected = [sums(cards, elements) if card == root else [] for card in range(cards)]
    assert carried_out(plans.reduce_one_shot(cards, elements, root), brought) == expected
    assert carried_out(plans.reduce_two_shot(cards, elements, root), brought) == expected
    ring = carried_out(plans.reduce_ring(order, elements, root), brought)
    assert list(map(in_any_order, ring)) == list(map(in_any_order, expected))
    assert ring[root] == carried_out(plans.all_reduce_ring(order, elements), brought)[root]


@given(CARDS.flatmap(lambda cards: st.tuples(st.permutations(range(cards)), st.integers(0, cards - 1))), ELEMENTS)
def test_a_broadcast_reaches_everybody(order_and_root, elements):
    order, root = order_and_root
    cards = len(order)
    brought = [[f"x{element}" for element in range(elements)] if card == root else [] for card in range(cards)]
    for plan in (
        plans.broadcast_one_shot(cards, elements, root),
        plans.broadcast_two_shot(cards, elements, root),
        plans.broadcast_ring(order, elements, root),
    ):
        assert carried_out(plan, brought) == [brought[root]] * cards


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).flatmap(
        lambda n: st.tuples(st.just(n), st.permutations(range(len(n))))
    )
)
def test_all_get_what_everybody_brings(lengths_and_order):
    lengths, order = lengths_and_order
    brought = [[f"{card}:{element}" for element in range(length)] for card, length in enumerate(lengths)]
    expected = [[word for words in brought for word in words]] * len(lengths)
    assert carried_out(plans.all_gather_one_shot(lengths), brought) == expected
    assert carried_out(plans.all_gather_ring(order, lengths), brought) == expected


@given(CARDS, ELEMENTS)
def test_a_sum_is_scattered(cards, elements):
    spans = cut(elements, cards)
    expected = [sums(cards, elements)[begin:end] for begin, end in spans]
    assert carried_out(plans.reduce_scatter(spans), cards_with(cards, elements)) == expected


def traffic(plan: CollectivePlan, cards: int) -> tuple[int, int, int]:
    """(most elements into a card, directed links in use, steps one after another over links)."""
    into, links, depth, sizes = Counter(), set(), [], []
    for number, value in enumerate(plan.values):
        if isinstance(value, Given):
            depth.append(0)
            sizes.append(value.end - value.begin)
        elif isinstance(value, Added):
            depth.append(max(depth[term] for term in value.values))
            sizes.append(sizes[value.values[0]])
        else:
            depth.append(depth[value.value] + 1)
            sizes.append(sizes[value.value])
            into[value.card] += sizes[value.value]
            links.add((plan.card_of(value.value), plan.card_of(number)))
    return max(into.values()), len(links), max(depth)


@pytest.mark.parametrize("cards", [2, 3, 4, 8])
def test_what_the_ways_cost(cards):
    """Elements into a card, links, steps: the figures by which a way is chosen."""
    whole = 24 * cards
    each_link = cards * (cards - 1)
    assert traffic(plans.all_reduce_one_shot(cards, whole), cards) == ((cards - 1) * whole, each_link, 1)
    twice = 2 * (cards - 1) * whole // cards
    assert traffic(plans.all_reduce_two_shot(cards, whole), cards) == (twice, each_link, 2)
    assert traffic(plans.all_reduce_ring(range(cards), whole), cards) == (twice, cards, 2 * (cards - 1))


def test_copies_come_before_the_sums_that_wait_for_them():
    """A card that waits for a sum must not hold back a copy of another."""
    plan = plans.all_reduce_two_shot(4, 100)
    kinds = [type(value) for value in plan.values]
    first_sum = kinds.index(Added)
    assert Sent not in kinds[first_sum : first_sum + 4]
    assert kinds[:first_sum].count(Sent) == 12
    ring = [type(value) for value in plans.all_reduce_ring(range(4), 100).values if not isinstance(value, Given)]
    assert ring[:8] == [Sent] * 4 + [Added] * 4


def test_fewer_elements_than_cards_leave_pieces_empty():
    assert cut(3, 5) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)]
    assert sum(isinstance(value, Sent) for value in plans.all_reduce_two_shot(5, 3).values) == 2 * 3 * 4
    assert not any(isinstance(value, Sent) for value in plans.all_reduce_ring(range(5), 0).values)


def test_no_cards_are_refused():
    with pytest.raises(ConfigurationError):
        plans.all_reduce_one_shot(0, 3)
