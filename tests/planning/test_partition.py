"""Cuts against trying every cut."""

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.costs import RunCosts
from poolrt.planning.partition import partition
from poolrt.topology.build import virtual_topology
from poolrt.topology.route import route
from poolrt.topology.topology import Link, Topology


def anything_fits(card, first, last):
    return True


def every_cut(layers, cards):
    for cuts in combinations_with_replacement(range(layers + 1), cards - 1):
        yield tuple(pairwise((0, *cuts, layers)))


def objective(costs, runs):
    tables = [costs.table(card) for card in range(costs.cards)]
    slowest = max(tables[card].busy_s[first][last] for card, (first, last) in enumerate(runs))
    return slowest, sum(tables[card].crossing_s[first][last] for card, (first, last) in enumerate(runs))


def best_by_trying(costs, fits):
    fitting = [
        runs
        for runs in every_cut(costs.layers, costs.cards)
        if all(fits(card, first, last) for card, (first, last) in enumerate(runs))
    ]
    full = [runs for runs in fitting if all(first < last for first, last in runs)]
    return min((objective(costs, runs) for runs in full or fitting), default=None)


@st.composite
def lines(draw, profiles, most_cards=4, revisits=True):
    """A profile and a line of cards, each link with a speed of its own."""
    profile = draw(profiles(ties=False, revisits=revisits))
    cards = draw(st.integers(1, most_cards))
    plain = virtual_topology([1 << 20] * cards)
    links = (
        Link(
            source=link.source,
            target=link.target,
            kind="PCIE",
            relation="PHB",
            bytes_per_s=draw(st.sampled_from([512.0, 4096.0])),
            latency_s=draw(st.sampled_from([0.0, 1 / 128])),
        )
        for link in plain.links
    )
    return profile, Topology(cards=plain.cards, links=tuple(links))


@settings(max_examples=150)
@given(data=st.data())
def test_no_cut_is_better(profiles, data):
    profile, topology = data.draw(lines(profiles))
    costs = RunCosts(profile, topology, micro_batches=data.draw(st.integers(1, 4)), call_overhead_s=1 / 64)
    weights = [layer.weight_nbytes for layer in profile.layers]
    capacities = data.draw(st.lists(st.integers(0, sum(weights)), min_size=costs.cards, max_size=costs.cards))

    def fits(card, first, last):
        return sum(weights[first:last]) <= capacities[card]

    runs = partition(costs, fits)
    best = best_by_trying(costs, fits)
    if best is None:
        assert runs is None
    else:
        assert runs in set(every_cut(costs.layers, costs.cards))
        assert all(fits(card, first, last) for card, (first, last) in enumerate(runs))
        assert objective(costs, runs) == pytest.approx(best)


@settings(max_examples=60)
@given(data=st.data())
def test_fitting_need_not_be_monotone(profiles, data):
    profile, topology = data.draw(lines(profiles, most_cards=3))
    costs = RunCosts(profile, topology, micro_batches=1, call_overhead_s=0.0)
    everything = [(c, i, j) for c in range(costs.cards) for j in range(costs.layers + 1) for i in range(j + 1)]
    refused = data.draw(st.sets(st.sampled_from(everything)))
    runs = partition(costs, lambda *run: run not in refused)
    best = best_by_trying(costs, lambda *run: run not in refused)
    assert (objective(costs, runs) if runs else None) == (pytest.approx(best) if best else None)


def crossings_by_walking(profile, topology, runs, micro_batches):
    """For each card, seconds of the copies to it in one micro-batch: outputs forward, their gradients backward."""
    card_of = [card for card, (first, last) in enumerate(runs) for _ in range(first, last)]
    positions = {layer.name: position for position, layer in enumerate(profile.layers)}
    where = [card_of[positions[call.layer]] for call in profile.calls]
    seconds = [0.0] * len(topology.cards)
    for call, source, target in zip(profile.calls, where, where[1:], strict=False):
        if source != target:
            nbytes = call.output_nbytes / micro_batches
            seconds[target] += route(topology, source, target).copy_s(nbytes)
            seconds[source] += route(topology, target, source).copy_s(nbytes)
    return seconds


@settings(max_examples=100)
@given(data=st.data())
def test_two_cards_pay_for_exactly_what_crosses_between_them(profiles, data):
    profile, topology = data.draw(lines(profiles, most_cards=2))
    micro_batches = data.draw(st.integers(1, 4))
    costs = RunCosts(profile, topology, micro_batches=micro_batches, call_overhead_s=1 / 64)
    for runs in every_cut(costs.layers, costs.cards):
        expected = crossings_by_walking(profile, topology, runs, micro_batches)
        for card, (first, last) in enumerate(runs):
            table = costs.table(card)
            names = [layer.name for layer in profile.layers[first:last]]
            calls = [call for call in profile.calls if call.layer in names]
            computed = sum((call.forward_s + call.backward_s) / micro_batches + 2 / 64 for call in calls)
            assert table.crossing_s[first][last] == pytest.approx(expected[card])
            assert table.busy_s[first][last] == pytest.approx(computed + expected[card])


@settings(max_examples=60)
@given(data=st.data())
def test_in_a_chain_every_card_pays_over_the_link_to_its_neighbour(profiles, data):
    profile, topology = data.draw(lines(profiles, revisits=False))
    costs = RunCosts(profile, topology, micro_batches=1, call_overhead_s=0.0)
    for runs in every_cut(costs.layers, costs.cards):
        if all(first < last for first, last in runs):
            expected = crossings_by_walking(profile, topology, runs, 1)
            paid = [costs.table(card).crossing_s[first][last] for card, (first, last) in enumerate(runs)]
            assert paid == pytest.approx(expected)


def test_equal_layers_are_cut_evenly(make_chain):
    costs = RunCosts(make_chain(blocks=8), virtual_topology([1] * 4), micro_batches=4, call_overhead_s=0.0)
    assert partition(costs, anything_fits) == ((0, 2), (2, 4), (4, 6), (6, 8))


def test_among_cuts_with_the_same_slowest_card_the_one_that_copies_least_wins(make_chain):
    # The first block is the slowest whatever comes after it, so the second cut is free; block 2 hands over the least.
    profile = make_chain(blocks=5)
    calls = [replace(profile.calls[0], forward_s=9.0)]
    calls += [replace(call, output_nbytes=size) for call, size in zip(profile.calls[1:], (900, 8, 600, 0), strict=True)]
    costs = RunCosts(
        replace(profile, calls=tuple(calls)), virtual_topology([1] * 3), micro_batches=1, call_overhead_s=0.0
    )
    assert partition(costs, anything_fits) == ((0, 1), (1, 3), (3, 5))


def test_the_cut_goes_where_the_least_is_handed_over(make_chain):
    # The three layers in the middle cost nothing, so the cut may fall on either side of any of them. The last of them
    # hands over the least.
    profile = make_chain(blocks=5)
    free = {"forward_s": 0.0, "backward_s": 0.0}
    calls = [
        replace(call, output_nbytes=nbytes) for call, nbytes in zip(profile.calls, (900, 900, 600, 60, 0), strict=True)
    ]
    calls[1:4] = [replace(call, **free) for call in calls[1:4]]
    costs = RunCosts(
        replace(profile, calls=tuple(calls)), virtual_topology([1, 1]), micro_batches=1, call_overhead_s=0.0
    )
    assert partition(costs, anything_fits) == ((0, 4), (4, 5))


def test_fewer_layers_than_cards_leave_cards_empty(make_chain):
    costs = RunCosts(make_chain(blocks=2), virtual_topology([1] * 4), micro_batches=1, call_overhead_s=0.0)
    runs = partition(costs, anything_fits)
    assert sorted(last - first for first, last in runs) == [0, 0, 1, 1]


def test_a_card_stays_empty_rather_than_nothing_fitting(make_chain):
    costs = RunCosts(make_chain(blocks=4), virtual_topology([1] * 3), micro_batches=1, call_overhead_s=0.0)
    assert partition(costs, lambda card, first, last: card != 1 or first == last) == ((0, 2), (2, 2), (2, 4))


def test_nothing_fits(make_chain):
    costs = RunCosts(make_chain(blocks=4), virtual_topology([1] * 2), micro_batches=1, call_overhead_s=0.0)
    assert partition(costs, lambda card, first, last: last - first < 2) is None
