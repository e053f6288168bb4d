"""Whole layers or split ones, over recorded boxes whose cards compute behind the caller's back.

one sample       whole layers: one card at work       split: all of them
many samples     whole layers: all cards at work      split: all of them, and everything crosses links
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolrt.planning.choose import WORTH, choose_stages, without_rest
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan, plan_stages
from poolrt.topology.box import virtual_box
from poolrt.topology.build import virtual_topology
from poolrt.units import KIB, MIB

LONG_S = 0.02
"""forward of a layer whose kernels are long"""


def box(name: str):
    topology = virtual_box(name)
    return replace(topology, cards=tuple(replace(card, kind="cuda") for card in topology.cards))


@pytest.fixture
def model(make_chain):
    """A function that gives a profile of blocks, with a few long operators in each."""

    def make(blocks: int, batch_size: int, forward_s: float = LONG_S, operations: int = 30, **facts):
        facts = {"output_nbytes": 16 * MIB, "saved_nbytes": 64 * MIB, "weight": 64 * MIB} | facts
        return make_chain(
            blocks, batch_size, forward_s=forward_s, backward_s=2 * forward_s, operations=operations, **facts
        )

    return make


class Asked:
    """How a model is split: nine tenths of every layer; it remembers who asked."""

    def __init__(self, split, profile, topology, part: float = 0.9) -> None:
        self.cards: list[tuple[int, ...]] = []
        self._split, self._profile, self._topology, self._part = split, profile, topology, part

    def __call__(self, cards: tuple[int, ...]):
        self.cards.append(cards)
        memory = [self._topology.cards[card].memory_bytes for card in cards]
        facts = self._split(self._profile, tuple(nbytes / sum(memory) for nbytes in memory), self._part)
        counted = zip(facts.calls, self._profile.calls, strict=True)
        return replace(facts, calls=tuple(replace(region, operations=call.operations) for region, call in counted))


@pytest.fixture
def choose(split):
    """A function that gives the choice and who was asked for facts."""

    def run(profile, topology, **options) -> tuple[Plan, Asked]:
        asked = Asked(split, profile, topology)
        return choose_stages(profile, topology, asked, **options), asked

    return run


def test_one_sample_on_eight_cards_with_fast_links_is_split_over_all(model, choose):
    plan, asked = choose(model(16, 1), box("8x-h100-sxm"))
    assert plan.stages == (tuple(range(8)),)
    assert asked.cards == [tuple(range(8))], "what cannot be faster is not asked for"
    whole = make_plan(model(16, 1), box("8x-h100-sxm"))
    assert plan.predicted_step_s < WORTH * whole.predicted_step_s
    note = next(note for note in plan.notes if note.startswith("Layers are split over cards 0, 1, 2, 3, 4, 5, 6, 7:"))
    assert "whole layers 964 ms" in note


def test_a_batch_that_can_be_cut_keeps_layers_whole_where_links_are_slow(model, choose):
    plan, asked = choose(model(16, 32), box("2x-rtx4090"))
    assert plan.stages == ()
    assert plan.micro_batches > 1
    assert asked.cards == []
    assert any("Layers stay whole" in note and "split over cards 0, 1 at best" in note for note in plan.notes)


def test_few_samples_on_two_bridged_pairs_are_split_over_the_pairs(model, choose):
    plan, _ = choose(model(16, 2, output_nbytes=32 * MIB), box("4x-rtx3090-two-pairs"))
    assert plan.stages == ((0, 2), (1, 3))
    assert plan.micro_batches == 2
    assert any(note.startswith("Layers are split over cards 0, 2 and cards 1, 3:") for note in plan.notes)


def test_a_batch_that_must_stay_whole_is_split_over_fast_links(model, choose):
    profile = model(16, 32)
    split, _ = choose(profile, box("4x-a100-sxm"), splittable=False, why_not_split="BatchNorm")
    assert split.tensor_parallel == 4
    cut, _ = choose(profile, box("4x-a100-sxm"))
    assert cut.tensor_parallel == 1


def test_a_layer_larger_than_a_card_is_split(model, choose):
    profile = model(1, 8, weight=512 * MIB)  # with gradients, state and its step's temporaries five times that
    topology = virtual_topology([2 << 30] * 2)
    assert not make_plan(profile, topology).feasible
    plan, _ = choose(profile, topology)
    assert plan.feasible
    assert plan.stages == ((0, 1),)
    assert any("whole layers too large for the cards" in note for note in plan.notes)


def test_what_would_spill_with_whole_layers_is_split_if_that_fits(model, choose):
    profile, topology = model(3, 8, weight=512 * MIB), virtual_topology([4608 * MIB] * 2)
    assert make_plan(profile, topology, spill="auto", host_bytes=1 << 40).spills
    plan, _ = choose(profile, topology, spill="auto", host_bytes=1 << 40)
    assert plan.feasible
    assert not plan.spills
    assert plan.tensor_parallel == 2
    assert any("a part of it elsewhere" in note for note in plan.notes)


def test_a_layer_too_large_even_in_pieces_spills(model, choose):
    profile, topology = model(1, 8, weight=3 << 30), virtual_topology([2 << 30] * 2)
    assert not make_plan(profile, topology, spill="auto", host_bytes=1 << 40).feasible
    plan, _ = choose(profile, topology, spill="auto", host_bytes=1 << 40)
    assert plan.feasible
    assert plan.spills
    assert plan.stages == ((0, 1),)


def test_what_fits_neither_whole_nor_split_says_so(model, choose):
    plan, _ = choose(model(1, 8, weight=3 << 30), virtual_topology([2 << 30] * 2))
    assert not plan.feasible
    assert any(note.startswith("Layers fit neither whole nor split. Compared with: split over") for note in plan.notes)


def test_short_kernels_stay_on_one_card_each(model, choose):
    """A mean kernel of 10 us is shorter than starting one on two cards."""
    profile = model(16, 1, forward_s=30 * 10e-6, output_nbytes=64 * KIB)
    plan, asked = choose(profile, box("8x-h100-sxm"))
    assert plan.stages == ()
    assert asked.cards == []


def test_virtual_cards_take_turns_so_a_batch_that_can_be_cut_is(model, choose):
    plan, asked = choose(model(8, 8), virtual_topology([8 << 30] * 2))
    assert plan.stages == ()
    assert asked.cards == []


def test_a_model_that_cannot_be_split_keeps_whole_layers_and_says_so(model):
    plan = choose_stages(model(16, 1), box("8x-h100-sxm"), lambda cards: None)
    assert plan.stages == ()
    assert any("not possible: no layer of the model can be" in note for note in plan.notes)


def test_pieces_that_are_slower_than_hoped_are_not_chosen(model, split):
    profile = model(16, 1)
    plan = choose_stages(profile, box("2x-rtx3090-nvlink"), lambda cards: split(profile, (0.5, 0.5), 0.1))
    assert plan.stages == ()
    assert not any("at best" in note for note in plan.notes)
    assert any("Layers stay whole" in note for note in plan.notes)


def test_where_seconds_do_not_count_memory_alone_decides(model, choose):
    profile, topology = model(16, 1), box("8x-h100-sxm")
    plan, asked = choose(profile, topology, by_time=False)
    assert plan == make_plan(profile, topology)
    assert asked.cards == []
    small = virtual_topology([2 << 30] * 2)
    assert choose(model(1, 8, weight=512 * MIB), small, by_time=False)[0].stages == ((0, 1),)


def test_one_card_has_nothing_to_compare(model, choose):
    profile, topology = model(4, 8), virtual_topology([8 << 30])
    assert choose(profile, topology)[0] == make_plan(profile, topology)


def test_what_is_hoped_for_is_never_more_than_what_is_found(model, split):
    """Bytes and seconds of a model of which everything is split are no more than with a rest."""
    profile, topology = model(8, 4), box("4x-a100-sxm")
    shares = (0.25,) * 4
    hoped = plan_stages([without_rest(profile, shares)], topology, [range(4)], micro_batches=1)
    for part in (0.5, 0.9, 1.0):
        found = plan_stages([split(profile, shares, part)], topology, [range(4)], micro_batches=1)
        assert hoped.predicted_step_s <= found.predicted_step_s
        assert hoped.cards[0].predicted_peak_bytes <= found.cards[0].predicted_peak_bytes
