from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.schedule import Action, gpipe_order, gpipe_timeline, makespan_s

paths = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(
    lambda cards: [card for index, card in enumerate(cards) if not index or cards[index - 1] != card]
)
micro_batches_ = st.integers(1, 6)


def drawn(path, micro_batches, duration_s=None):
    """The timeline as in the docstring of the module: one column of three characters for each second."""
    timeline = gpipe_timeline(path, micro_batches, duration_s=duration_s)
    rows = []
    for card in sorted(set(path)):
        row = ""
        for slot in (slot for slot in timeline if slot.action.card == card):
            letter = "F" if slot.action.visit == 0 else "f"
            row = row.ljust(3 * int(slot.start_s)) + f"{letter}{slot.action.micro_batch} "
        rows.append(f"card {card}:  {row}".rstrip())
    return rows


def test_two_cards_work_like_a_production_line():
    assert drawn((0, 1), 4) == [
        "card 0:  F0 F1 F2 F3",
        "card 1:     F0 F1 F2 F3",
    ]


def test_a_path_that_comes_back_admits_what_has_waited_longest():
    assert drawn((0, 1, 0, 1), 2) == [
        "card 0:  F0 F1 f0 f1",
        "card 1:     F0 F1 f0 f1",
    ]
    assert drawn((0, 1, 0), 4) == [
        "card 0:  F0 F1 F2 F3 f0 f1 f2 f3",
        "card 1:     F0 F1 F2 F3",
    ]


def test_a_slow_card_makes_the_others_wait():
    assert drawn((0, 1, 2), 3, duration_s=(1, 2, 1)) == [
        "card 0:  F0 F1 F2",
        "card 1:     F0    F1    F2",
        "card 2:           F0    F1    F2",
    ]


def test_backward_goes_the_reversed_path():
    order = gpipe_order((1, 0), 2, phase="B")
    assert {card: [str(action) for action in actions] for card, actions in order.items()} == {
        1: ["1B0", "1B1"],
        0: ["0B0", "0B1"],
    }


@given(st.builds(Action, st.sampled_from("FB"), st.integers(0, 99), st.integers(0, 9), st.integers(0, 999)))
def test_an_action_is_read_back_as_it_prints(action):
    assert Action.parse(str(action)) == action


def test_the_first_visit_prints_as_in_the_literature():
    assert str(Action("F", 2, 0, 0)) == "2F0"
    assert str(Action("B", 2, 1, 3)) == "2.1B3"


@pytest.mark.parametrize("text", ["", "F0", "2F", "2G0", "2f0", "2F0 ", "-1F0"])
def test_other_text_is_no_action(text):
    with pytest.raises(ConfigurationError):
        Action.parse(text)


def run_in_any_timing(path, micro_batches, order, choose):
    """Carry the orders out: a card may only admit its next action, once that micro-batch's earlier hops are done."""
    hops = [(card, list(path[:position]).count(card)) for position, card in enumerate(path)]
    done = [0] * micro_batches
    left = {card: list(actions) for card, actions in order.items()}
    while any(left.values()):
        ready = [
            card
            for card, actions in left.items()
            if actions and hops[done[actions[0].micro_batch]] == (card, actions[0].visit)
        ]
        assert ready, f"deadlock: every card waits, {left}"
        done[left[choose(ready)].pop(0).micro_batch] += 1
    return done


@given(paths, micro_batches_, st.data())
def test_every_order_can_be_carried_out_whatever_the_timing(path, micro_batches, data):
    durations = data.draw(st.lists(st.floats(0, 10), min_size=len(path), max_size=len(path)))
    order = gpipe_order(path, micro_batches, duration_s=durations)
    done = run_in_any_timing(path, micro_batches, order, lambda ready: data.draw(st.sampled_from(ready)))
    assert done == [len(path)] * micro_batches


@given(paths, micro_batches_, st.data())
def test_a_card_does_one_thing_at_a_time_and_hops_follow_each_other(path, micro_batches, data):
    durations = data.draw(st.lists(st.integers(0, 5), min_size=len(path), max_size=len(path)))
    timeline = gpipe_timeline(path, micro_batches, duration_s=durations)
    for card in set(path):
        slots = [slot for slot in timeline if slot.action.card == card]
        assert all(earlier.end_s <= later.start_s for earlier, later in pairwise(slots))
    for micro_batch in range(micro_batches):
        slots = [slot for slot in timeline if slot.action.micro_batch == micro_batch]
        assert [slot.action.card for slot in slots] == list(path)
        assert [slot.end_s - slot.start_s for slot in slots] == durations
        assert all(earlier.end_s <= later.start_s for earlier, later in pairwise(slots))


@given(paths, micro_batches_, st.data())
def test_no_card_idles_while_something_waits_for_it(path, micro_batches, data):
    durations = data.draw(st.lists(st.integers(1, 5), min_size=len(path), max_size=len(path)))
    timeline = gpipe_timeline(path, micro_batches, duration_s=durations)
    for slot in timeline:
        own = [x for x in timeline if x.action.micro_batch == slot.action.micro_batch and x.end_s <= slot.start_s]
        on_card = [x for x in timeline if x.action.card == slot.action.card and x.end_s <= slot.start_s]
        became_ready = max((x.end_s for x in own), default=0)
        became_free = max((x.end_s for x in on_card), default=0)
        assert slot.start_s == max(became_ready, became_free)


@given(st.permutations(range(4)), micro_batches_, st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_without_repeats_the_makespan_is_known(path, micro_batches, durations):
    assert makespan_s(path, durations, micro_batches) == sum(durations) + (micro_batches - 1) * max(durations)


def test_equal_stages_reach_the_ideal_of_gpipe():
    # m micro-batches on p cards take m + p - 1 slots: the bubble is (p - 1) / (m + p - 1).
    assert makespan_s(range(4), [1] * 4, 8) == 8 + 4 - 1


@pytest.mark.parametrize(("micro_batches", "durations"), [(0, None), (-1, None), (2, [1.0]), (2, [1.0, -1.0])], ids=str)
def test_what_is_no_schedule_is_refused(micro_batches, durations):
    with pytest.raises(ConfigurationError):
        gpipe_order((0, 1), micro_batches, duration_s=durations)
