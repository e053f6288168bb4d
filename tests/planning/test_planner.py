import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError, PlanError
from poolrt.planning.largest import largest_batch
from poolrt.planning.limits import Limits
from poolrt.planning.planner import make_plan
from poolrt.planning.profile import Profile
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.topology import Card, Topology
from poolrt.units import parse_nbytes

MIB = 1 << 20
GIB = 1 << 30


def layers_by_card(plan):
    return [len(card.layers) for card in plan.cards]


def test_equal_layers_go_to_equal_cards_in_equal_parts(make_chain):
    plan = make_plan(make_chain(blocks=8), virtual_topology([4 * GIB] * 4))
    assert plan.feasible
    assert layers_by_card(plan) == [2, 2, 2, 2]
    assert plan.cards[1].layers == ("block.2", "block.3")


def test_a_card_with_less_memory_gets_less(make_chain):
    # Each block takes 64 MiB of weights, gradient and state, and 16 MiB more in the optimizer's step.
    plan = make_plan(make_chain(blocks=8), virtual_topology([200 * MIB, 900 * MIB]))
    assert plan.feasible
    assert layers_by_card(plan) == [2, 6]


def test_a_line_of_unlike_cards_may_be_turned_round(make_chain):
    # The last block must have the large card, and the line of the cards as given ends with the small one.
    profile = make_chain(blocks=4)
    heavy = replace(profile.layers[-1], weight_nbytes=160 * MIB, trainable_nbytes=160 * MIB)
    profile = replace(profile, layers=(*profile.layers[:-1], heavy))
    plan = make_plan(profile, virtual_topology([900 * MIB, 250 * MIB]))
    assert plan.feasible
    assert plan.card_of()["block.3"] == 0
    assert plan.card_of()["block.0"] == 1


def test_more_micro_batches_while_they_pay(make_chain):
    topology = virtual_topology([4 * GIB] * 2)
    chosen = {
        overhead: make_plan(make_chain(), topology, call_overhead_s=overhead).micro_batches
        for overhead in (0.0, 2e-3, 1.0)
    }
    assert chosen[0.0] == 8
    assert chosen[0.0] > chosen[2e-3] > chosen[1.0] == 1


def test_on_a_near_tie_there_are_fewer_micro_batches(make_chain):
    topology = virtual_topology([4 * GIB] * 2)

    def step_s(count, overhead):
        return make_plan(make_chain(), topology, micro_batches=count, call_overhead_s=overhead).predicted_step_s

    differing = 0
    for overhead in [index * 1e-4 for index in range(12)]:
        steps = {count: step_s(count, overhead) for count in (1, 2, 4, 8)}
        chosen = make_plan(make_chain(), topology, call_overhead_s=overhead).micro_batches
        assert chosen == min(count for count, seconds in steps.items() if seconds <= 1.02 * min(steps.values()))
        differing += steps[chosen] > min(steps.values())
    assert differing


def test_there_are_never_more_micro_batches_than_samples_or_than_four_for_each_card(make_chain):
    topology = virtual_topology([4 * GIB] * 2)
    assert make_plan(make_chain(batch_size=3), topology, call_overhead_s=0.0).micro_batches == 2
    assert make_plan(make_chain(batch_size=64), topology, call_overhead_s=0.0).micro_batches == 8


def test_a_stated_number_is_kept_and_a_batch_too_small_for_it_is_noted(make_chain):
    topology = virtual_topology([4 * GIB] * 2)
    assert make_plan(make_chain(), topology, micro_batches=5).micro_batches == 5
    fallen_back = make_plan(make_chain(batch_size=3), topology, micro_batches=5)
    assert fallen_back.micro_batches == 3
    assert any("5" in note and "3" in note for note in fallen_back.notes)


def test_what_cannot_be_split_stays_whole_and_says_why(make_chain):
    plan = make_plan(
        make_chain(),
        virtual_topology([4 * GIB] * 2),
        micro_batches=4,
        splittable=False,
        why_not_split="BatchNorm sees it",
    )
    assert plan.micro_batches == 1
    assert any("BatchNorm sees it" in note for note in plan.notes)


def test_pooling_that_costs_time_is_done_and_noted(make_chain):
    slow = make_plan(make_chain(), virtual_topology([4 * GIB] * 2), micro_batches=1)
    assert layers_by_card(slow) == [4, 4]
    assert any("alone" in note for note in slow.notes)
    paying = make_plan(make_chain(), virtual_topology([4 * GIB] * 2))
    assert paying.notes == ()


def test_logical_cards_of_one_device_promise_no_speed_up(make_chain):
    profile = make_chain()
    work_s = sum(call.forward_s + call.backward_s for call in profile.calls)
    plan = make_plan(profile, logical_topology("cuda:0", [4 * GIB] * 2), call_overhead_s=0.0)
    assert plan.predicted_step_s == pytest.approx(work_s)
    assert make_plan(profile, virtual_topology([4 * GIB] * 2)).predicted_step_s < 0.7 * work_s


def test_the_step_is_the_pipeline_s_ideal_on_free_links(make_chain):
    shares = logical_topology("cuda:0", [4 * GIB] * 4)
    cards = tuple(replace(card, device=f"cuda:{card.index}") for card in shares.cards)
    links = virtual_topology([1] * 4, "nvlink5x18").links
    plan = make_plan(make_chain(), Topology(cards=cards, links=links), micro_batches=8, call_overhead_s=0.0)
    work_s = 8 * (0.01 + 0.02)
    assert plan.predicted_step_s == pytest.approx(work_s / 4 / 8 * (8 + 4 - 1), rel=0.02)


def test_another_batch_is_planned_from_the_same_profile(make_chain):
    plan = make_plan(make_chain(batch_size=2), virtual_topology([4 * GIB] * 2), batch_size=8)
    assert plan.batch_size == 8
    assert plan == make_plan(make_chain(batch_size=2).scaled(8), virtual_topology([4 * GIB] * 2))


def test_fewer_layers_than_cards_are_noted(make_chain):
    plan = make_plan(make_chain(blocks=2), virtual_topology([4 * GIB] * 3))
    assert sorted(layers_by_card(plan)) == [0, 1, 1]
    assert any("no layer" in note for note in plan.notes)


def test_outputs_are_gathered_where_they_are_wanted(make_chain):
    profile = replace(make_chain(weight=MIB), gathered_nbytes=256 * MIB)
    topology = virtual_topology([4 * GIB] * 2)

    def activations(output_card):
        plan = make_plan(profile, topology, micro_batches=4, output_card=output_card)
        return [card.predicted_bytes.activations for card in plan.cards]

    first, last = activations("host")
    assert activations("last") == [first, last + 256 * MIB]
    assert activations(1) == activations("last")
    assert activations(0)[0] == first + 256 * MIB


def test_part_of_a_gpu_is_left_free_by_default(make_chain):
    profile = make_chain(blocks=2)

    def usable(kind, **options):
        card = Card(index=0, name="x", kind=kind, memory_bytes=1000, device="x")
        return Limits(**options).usable_bytes(Topology(cards=(card,)))

    assert usable("cuda") == usable("logical") == (950,)
    assert usable("virtual") == usable("recorded") == (1000,)
    assert usable("cuda", reserve_fraction=0.2) == usable("virtual", reserve_fraction=0.2) == (800,)
    peak = make_plan(profile, virtual_topology([GIB])).cards[0].predicted_peak_bytes
    assert make_plan(profile, virtual_topology([peak])).feasible
    assert not make_plan(profile, virtual_topology([peak]), reserve_fraction=0.01).feasible


@settings(max_examples=60)
@given(data=st.data())
def test_a_plan_places_every_layer_once_and_keeps_every_card_within_its_memory(profiles, data):
    profile = data.draw(profiles())
    memory = data.draw(st.lists(st.integers(500, 6000), min_size=1, max_size=4))
    topology = virtual_topology(memory)
    optimizer = data.draw(st.sampled_from(["adamw", "sgd"]))
    plan = make_plan(profile, topology, optimizer=optimizer)
    placed = [layer for card in plan.cards for layer in card.layers]
    assert sorted(placed) == sorted(layer.name for layer in profile.layers)
    fits = all(card.predicted_peak_bytes <= card.capacity_bytes for card in plan.cards)
    assert plan.feasible == fits
    assert bool(plan.reason) != plan.feasible
    assert (plan.model, plan.topology) == (profile.model, topology.fingerprint())


@pytest.fixture
def too_large(make_chain):
    """64 samples on two cards that hold the weights and 8 or so."""
    profile = make_chain(batch_size=64, saved_nbytes=256 * MIB)
    return profile, virtual_topology([640 * MIB] * 2)


def test_an_infeasible_plan_names_the_card_and_what_fills_it(too_large):
    plan = make_plan(*too_large)
    assert not plan.feasible
    assert re.match(r"card \d \(virtual card \d\) has 640 MiB", plan.reason)
    for kind in ("weights", "gradients", "optimizer", "activations", "workspace"):
        assert kind in plan.reason


def test_the_batch_it_advises_fits_and_one_more_does_not(too_large):
    profile, topology = too_large
    advised = int(re.search(r"batch of at most (\d+) samples", make_plan(profile, topology).reason)[1])
    assert 0 < advised < 64
    assert make_plan(profile, topology, batch_size=advised).feasible
    assert not make_plan(profile, topology, batch_size=advised + 1).feasible


def test_the_memory_it_advises_is_enough(too_large):
    profile, topology = too_large
    reason = make_plan(profile, topology).reason
    advised = parse_nbytes(re.search(r"cards of at least ([\d.]+ \w+) each", reason)[1])
    assert make_plan(profile, virtual_topology([int(advised * 1.001)] * 2)).feasible
    assert not make_plan(profile, virtual_topology([int(advised * 0.97)] * 2)).feasible


def test_the_micro_batches_it_advises_fit(make_chain):
    profile = make_chain(weight=MIB, forward_workspace_nbytes=512 * MIB, saved_nbytes=MIB)
    topology = virtual_topology([200 * MIB] * 2)
    plan = make_plan(profile, topology, micro_batches=1)
    assert not plan.feasible
    advised = int(re.search(r"To make it fit: (\d+) micro-batches", plan.reason)[1])
    assert make_plan(profile, topology, micro_batches=advised).feasible


def test_a_model_that_no_batch_can_save(make_chain):
    plan = make_plan(make_chain(weight=GIB), virtual_topology([GIB] * 2))
    assert not plan.feasible
    assert "samples" not in plan.reason
    assert "more cards" in plan.reason


def test_unlike_cards_are_advised_a_factor(make_chain):
    plan = make_plan(make_chain(weight=GIB), virtual_topology([GIB, 2 * GIB]))
    assert re.search(r"[\d.]+ times the memory on every card", plan.reason)


def test_a_large_model_on_many_cards_is_planned(make_chain):
    profile = make_chain(blocks=120, batch_size=32)
    topology = virtual_topology([int(2.2 * GIB)] * 8)
    plan = make_plan(profile, topology)
    assert plan.feasible
    assert layers_by_card(plan) == [15] * 8
    assert not make_plan(profile, virtual_topology([GIB] * 8)).feasible


@settings(max_examples=30)
@given(data=st.data())
def test_the_largest_batch_is_where_plans_stop_fitting(profiles, data):
    profile = data.draw(profiles(most_layers=4))
    topology = virtual_topology(data.draw(st.lists(st.integers(500, 4000), min_size=1, max_size=3)))
    limit = data.draw(st.integers(0, 12))
    feasible = [size for size in range(1, limit + 1) if make_plan(profile, topology, batch_size=size).feasible]
    largest = largest_batch(profile, topology, limit=limit)
    assert largest in (0, *feasible)
    assert largest == limit or largest + 1 not in feasible


def test_the_largest_batch_keeps_to_the_number_of_micro_batches(make_chain):
    profile = make_chain(weight=MIB, forward_workspace_nbytes=512 * MIB, saved_nbytes=MIB)
    topology = virtual_topology([200 * MIB] * 2)
    whole = largest_batch(profile, topology, limit=1000, micro_batches=1)
    assert largest_batch(profile, topology, limit=1000, splittable=False) == whole
    assert whole < largest_batch(profile, topology, limit=1000, micro_batches=4) < 1000
    with pytest.raises(ConfigurationError):
        largest_batch(profile, topology, limit=-1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batches": 0},
        {"micro_batches": "many"},
        {"micro_batches": True},
        {"schedule": "1f1b"},
        {"optimizer": "unheard of"},
        {"batch_size": 0},
        {"output_card": 2},
        {"output_card": "first"},
        {"reserve_fraction": 1.0},
        {"reserve_fraction": -0.1},
        {"call_overhead_s": -1.0},
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(make_chain, wrong):
    with pytest.raises(ConfigurationError):
        make_plan(make_chain(), virtual_topology([GIB] * 2), **wrong)


def test_no_cards_and_no_calls_are_refused(make_chain):
    with pytest.raises(ConfigurationError):
        make_plan(make_chain(), Topology(cards=()))
    with pytest.raises(PlanError):
        make_plan(Profile(model="m", batch_size=1, layers=(), calls=()), virtual_topology([GIB]))
