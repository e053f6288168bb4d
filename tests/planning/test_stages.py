"""Layers over stages of several cards.

    cards    0 and 1 run layers 0 and 1 together   |   2 and 3 run layers 2 and 3 together

Of every layer half is split: the lead card has 1/2 + 1/4 of it, the other 1/4.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.memory import MemoryModel
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan, plan_stages
from poolrt.planning.profile import Profile
from poolrt.planning.split_facts import SplitFacts
from poolrt.topology.build import virtual_topology
from poolrt.topology.topology import Topology
from poolrt.units import MIB


def gpus(count: int, memory: int, link: str | None = "nvlink3x4") -> Topology:
    """Cards that compute behind the caller's back."""
    topology = virtual_topology([memory] * count, link)
    return replace(topology, cards=tuple(replace(card, kind="cuda") for card in topology.cards))


@pytest.fixture
def two_by_two(split):
    """A function that plans two stages of two cards."""

    def plan(profile: Profile, topology: Topology) -> Plan:
        facts = split(profile, (0.5, 0.5))
        return plan_stages([facts, facts], topology, [(0, 1), (2, 3)])

    return plan


def test_cards_of_a_stage_have_its_layers_and_the_first_one_leads(two_by_two, make_chain):
    plan = two_by_two(make_chain(4), virtual_topology([1 << 30] * 4))
    assert plan.feasible
    assert [card.layers for card in plan.cards] == 2 * [("block.0", "block.1")] + 2 * [("block.2", "block.3")]
    assert plan.card_of() == {"block.0": 0, "block.1": 0, "block.2": 2, "block.3": 2}
    assert (plan.stages, plan.tensor_parallel) == (((0, 1), (2, 3)), 2)
    assert plan.split_modules == tuple(f"block.{index}.region" for index in range(4))
    assert [card.predicted_bytes.weights for card in plan.cards] == [24 * MIB, 8 * MIB] * 2
    assert plan.micro_batches > 1, "stages work on different micro-batches"


def test_json_keeps_stages_and_reads_a_plan_made_before_there_were_any(two_by_two, make_chain):
    plan = two_by_two(make_chain(4), virtual_topology([1 << 30] * 4))
    assert Plan.from_json(plan.to_json()) == plan
    lone = make_plan(make_chain(4), virtual_topology([1 << 30] * 2))
    assert (lone.stages, lone.split_modules) == ((), ())
    older = lone.to_json().replace('"stages": [],', "").replace('"split_modules": []', '"more": 1')
    assert "stages" not in older
    assert Plan.from_json(older) == lone


def test_people_read_which_cards_work_together(two_by_two, make_chain):
    text = two_by_two(make_chain(4), virtual_topology([1 << 30] * 4)).explain()
    assert "- cards 0 and 1 run block.0-1 together: each has its pieces, card 0 also what is not split" in text


@settings(max_examples=60)
@given(data=st.data())
def test_stages_of_one_card_are_planned_as_cards_are(profiles, data):
    profile = data.draw(profiles())
    memory = data.draw(st.integers(500, 6000))
    topology = virtual_topology([memory] * data.draw(st.integers(1, 3)))
    alone = make_plan(profile, topology)
    staged = plan_stages(
        [SplitFacts.whole(profile)] * len(topology), topology, [(card.index,) for card in topology.cards]
    )
    assert staged.cards == alone.cards
    assert staged.predicted_step_s == alone.predicted_step_s
    assert (staged.micro_batches, staged.feasible) == (alone.micro_batches, alone.feasible)
    assert staged.card_of() == alone.card_of()


@settings(max_examples=60)
@given(data=st.data())
def test_every_card_of_a_stage_fits_and_every_layer_is_on_one_stage(split, profiles, data):
    profile = data.draw(profiles(ties=False))
    topology = virtual_topology(data.draw(st.lists(st.integers(500, 9000), min_size=4, max_size=4)))
    stages = data.draw(st.sampled_from([((0, 1), (2, 3)), ((3,), (0, 2, 1)), ((1, 0), (2,), (3,)), ((2, 0, 1, 3),)]))
    shares = data.draw(st.sampled_from([0.5, 0.7]))
    of_size = {1: (1.0,), 2: (shares, 1 - shares), 3: (shares, *[(1 - shares) / 2] * 2), 4: (0.25,) * 4}
    facts = {n: split(profile, of_size[n]) if n > 1 else SplitFacts.whole(profile) for n in of_size}
    plan = plan_stages([facts[len(stage)] for stage in stages], topology, stages)
    placed = [layer for card in plan.cards if card.index in {stage[0] for stage in stages} for layer in card.layers]
    assert sorted(placed) == sorted(layer.name for layer in profile.layers)
    for stage in stages:
        assert len({plan.cards[card].layers for card in stage}) == 1
        for position, card in enumerate(stage):
            own = facts[len(stage)].profiles[position]
            held = [index for index, layer in enumerate(own.layers) if layer.name in plan.cards[card].layers]
            model = MemoryModel(own, micro_batches=plan.micro_batches, optimizer="adamw")
            gathers = position == 0 and profile.calls[-1].layer in plan.cards[card].layers
            assert plan.cards[card].predicted_bytes == model.peak(held, gathers=gathers)
    if plan.feasible:
        assert all(card.predicted_peak_bytes <= card.capacity_bytes for card in plan.cards)
    else:
        assert any(card.predicted_peak_bytes > card.capacity_bytes for card in plan.cards)


def test_cards_left_out_hold_nothing_and_a_note_says_so(split, make_chain):
    profile = make_chain(4)
    plan = plan_stages([split(profile, (0.5, 0.5))], virtual_topology([1 << 30] * 3), [(0, 2)])
    assert plan.cards[1].layers == ()
    assert plan.cards[1].predicted_peak_bytes == 0
    assert "Card 1 holds no layer: it is in no stage." in plan.notes


def test_a_layer_too_large_for_every_card_fits_two_together(split, make_chain):
    profile = make_chain(2, weight=512 * MIB)  # with gradients, state and its step's temporaries five times that
    topology = virtual_topology([1536 * MIB] * 4)
    assert not make_plan(profile, topology).feasible
    facts = split(profile, (0.5, 0.5), part=1.0)
    assert plan_stages([facts, facts], topology, [(0, 1), (2, 3)]).feasible


def test_one_layer_larger_than_a_card_trains_on_two_with_the_rest_on_the_host(split, make_chain):
    """Of a weight of 1.5 cards each holds 0.75, and as much of gradients: weights and state are then elsewhere."""
    card = 256 * MIB
    weight = card * 3 // 2
    profile = make_chain(1, weight=weight, saved_nbytes=MIB)
    profile = replace(profile, layers=(replace(profile.layers[0], trained_tensors=(weight,)),))
    topology = virtual_topology([card] * 2)
    facts = split(profile, (0.5, 0.5), part=1.0)
    assert not make_plan(profile, topology, spill="auto", host_bytes=1 << 40).feasible
    assert not plan_stages([facts], topology, [(0, 1)]).feasible
    plan = plan_stages([facts], topology, [(0, 1)], spill="auto", host_bytes=1 << 40)
    assert plan.feasible
    for one in plan.cards:
        assert one.spilled_layers == ("block.0",)
        assert one.predicted_bytes.gradients == weight // 2, "gradients stay"
        assert one.pooled_bytes.weights.total >= weight // 2
        assert one.pooled_bytes.optimizer.total >= weight
        assert one.predicted_peak_bytes <= card
        assert one.pool_limit_bytes > 0
    assert plan.host_spill_bytes > 2 * weight
    short = plan_stages([facts], topology, [(0, 1)], spill=plan.host_spill_bytes - 1)
    assert not short.feasible
    assert "host memory" in short.reason
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=40)
@given(data=st.data())
def test_stages_of_one_card_spill_as_cards_do(tight, data):
    profile, topology = data.draw(tight())
    topology = replace(
        topology, cards=tuple(replace(card, memory_bytes=topology.cards[0].memory_bytes) for card in topology.cards)
    )
    spill = data.draw(st.sampled_from(["auto", "never", 64 * MIB]))
    alone = make_plan(profile, topology, spill=spill, host_bytes=1 << 40)
    staged = plan_stages(
        [SplitFacts.whole(profile)] * len(topology),
        topology,
        [(card.index,) for card in topology.cards],
        spill=spill,
        host_bytes=1 << 40,
    )
    assert (staged.cards, staged.feasible) == (alone.cards, alone.feasible)
    assert (staged.predicted_step_s, staged.host_spill_bytes) == (alone.predicted_step_s, alone.host_spill_bytes)


@settings(max_examples=40)
@given(data=st.data())
def test_no_card_of_a_stage_is_overfull_when_it_spills_and_what_is_pooled_has_a_place(split, tight, data):
    profile, topology = data.draw(tight())
    profile = replace(profile, tied=())
    cards = tuple(card.index for card in topology.cards)
    stages = data.draw(st.sampled_from([(cards,), tuple((card,) for card in cards), (cards[:1], cards[1:])]))
    stages = tuple(stage for stage in stages if stage)
    facts = {n: split(profile, (1 / n,) * n) if n > 1 else SplitFacts.whole(profile) for n in (1, 2, 3)}
    plan = plan_stages([facts[len(stage)] for stage in stages], topology, stages, spill="auto", host_bytes=1 << 40)
    if not plan.feasible:
        return
    assert all(card.predicted_peak_bytes <= card.capacity_bytes for card in plan.cards)
    for card in plan.cards:
        guests = sum(
            peer.nbytes for other in plan.cards for peer in other.pooled_bytes.all.peers if peer.card == card.index
        )
        assert guests == card.predicted_bytes.guests
    assert plan.host_spill_bytes >= sum(card.pooled_bytes.all.host for card in plan.cards)


def test_a_card_that_is_too_small_is_named_with_what_would_do(two_by_two, make_chain):
    profile = make_chain(4)
    plan = two_by_two(profile, virtual_topology([1 << 30, 32 * MIB] * 2))
    assert not plan.feasible
    assert plan.reason.startswith(("card 1 ", "card 3 "))
    assert "with layers split over 2 cards" in plan.reason
    assert "To make it fit: " in plan.reason


def test_cards_with_devices_of_their_own_halve_what_is_split(split, make_chain):
    facts = split(make_chain(4, forward_s=0.1, backward_s=0.2), (0.5, 0.5))
    one = plan_stages([facts], gpus(2, 1 << 30), [(0, 1)], micro_batches=1)
    assert one.predicted_step_s == pytest.approx(4 * 0.3 * 0.75, rel=0.01)
    assert [card.predicted_busy_s for card in one.cards] == pytest.approx([0.9, 0.3])
    shared = gpus(2, 1 << 30)
    shared = replace(shared, cards=tuple(replace(card, device="cuda:0", kind="logical") for card in shared.cards))
    slow = plan_stages([facts], shared, [(0, 1)], micro_batches=1)
    assert slow.predicted_step_s == pytest.approx(4 * 0.3, rel=0.01), "two halves of one GPU take turns"


def test_virtual_cards_take_turns_in_forward_and_in_lanes_in_backward_too(split, make_chain):
    facts = split(make_chain(4, forward_s=0.1, backward_s=0.2), (0.5, 0.5))
    virtual = virtual_topology([1 << 30] * 2)
    whole = plan_stages([facts], virtual, [(0, 1)], micro_batches=1)
    assert whole.predicted_step_s == pytest.approx(4 * (0.1 + 0.2 * 0.75), rel=0.01)
    cut = plan_stages([facts], virtual, [(0, 1)], micro_batches=2)
    assert cut.predicted_step_s == pytest.approx(4 * 0.3, rel=0.02)


def test_short_kernels_take_what_starting_them_on_every_card_takes(split, make_chain):
    profile = make_chain(4, forward_s=1e-4, backward_s=2e-4)
    facts = split(profile, (0.5, 0.5), part=1.0)
    counted = replace(facts, calls=tuple(replace(call, operations=100) for call in facts.calls))
    topology = gpus(2, 1 << 30)
    alone = make_plan(profile, topology, micro_batches=1)
    split_s = plan_stages([counted], topology, [(0, 1)], micro_batches=1).predicted_step_s
    assert split_s > 4 * 2 * (2 * 100 * 6e-6), "forward and backward of four regions of 100 operators on two cards"
    assert split_s > alone.predicted_step_s


def test_a_slow_link_costs_what_regions_read_and_return(split, make_chain):
    facts = split(make_chain(4, output_nbytes=64 * MIB), (0.5, 0.5))
    fast, slow = (
        plan_stages([facts], gpus(2, 4 << 30, link), [(0, 1)], micro_batches=1).predicted_step_s
        for link in ("nvlink4x18", "pcie3x16")
    )
    bytes_per_s = gpus(2, 1, "pcie3x16").links[0].bytes_per_s
    assert slow - fast == pytest.approx(4 * 2 * 2 * 64 * MIB / bytes_per_s, rel=0.1)


@pytest.mark.parametrize("stages", [(), ((0, 1), (1, 2)), ((0, 9),), ((0, 1, 2),)])
def test_stages_that_cannot_be_are_refused(split, make_chain, stages):
    facts = split(make_chain(2), (0.5, 0.5))
    with pytest.raises(ConfigurationError, match="stage"):
        plan_stages([facts] * len(stages), virtual_topology([1 << 30] * 4), stages)


def test_another_batch_is_planned_by_proportion(split, make_chain):
    facts = split(make_chain(4, batch_size=8, saved_nbytes=64 * MIB), (0.5, 0.5))
    topology = virtual_topology([1 << 30] * 2)
    small, large = (
        plan_stages([facts], topology, [(0, 1)], micro_batches=1, batch_size=size, optimizer="none") for size in (8, 16)
    )
    assert large.batch_size == 16
    assert large.predicted_step_s == pytest.approx(2 * small.predicted_step_s, rel=0.05)
    assert large.cards[0].predicted_bytes.activations == 2 * small.cards[0].predicted_bytes.activations > 0
