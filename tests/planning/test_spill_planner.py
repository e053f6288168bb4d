"""Plans that spill: never over a capacity, never without need, never further away than need be."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.granules import GRANULE
from poolrt.planning.largest import largest_batch
from poolrt.planning.limits import Limits
from poolrt.planning.memory import MemoryModel
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan
from poolrt.planning.pooled_bytes import PooledBytes
from poolrt.planning.search import Search
from poolrt.planning.spill_search import SpillSearch, is_feasible
from poolrt.planning.ways import Ways
from poolrt.topology.build import virtual_topology

MIB = 1 << 20
GIB = 1 << 30
PLENTY = 1 << 40

optimizers = st.sampled_from(["adamw", "sgd", "sgd-momentum", "none"])


def planned(topology, profile, **options):
    return make_plan(profile, topology, **{"spill": "auto", "host_bytes": PLENTY} | options)


def test_a_model_half_as_large_again_as_all_cards_is_trained_with_the_host(make_chain):
    """
    card 0   |# # # # g g g g s a|
    card 1   |# # # # g g g g s a|        # weights, g gradients, s state, a activations
    host      s s s s s s . . . .         the rest of the state, and the step's temporaries
    """
    profile = make_chain(8)
    weights, state = 8 * 16 * MIB, 2 * 8 * 16 * MIB
    topology = virtual_topology([170 * MIB] * 2)
    assert 2 * weights + state >= 1.5 * 2 * 170 * MIB
    assert not make_plan(profile, topology).feasible
    plan = planned(topology, profile)
    assert plan.feasible
    assert [card.spills_optimizer for card in plan.cards] == [True, True]
    assert [card.spilled_layers for card in plan.cards] == [(), ()]
    assert sum(card.pooled_bytes.optimizer.total for card in plan.cards) == state
    assert sum(card.pooled_bytes.temporaries.total for card in plan.cards) == weights
    there = sum(card.pooled_bytes.all.host for card in plan.cards)
    assert plan.host_spill_bytes == there + 2 * GRANULE
    for card in plan.cards:
        assert card.pool_limit_bytes == card.pooled_bytes.all.home
        assert card.predicted_bytes.optimizer == card.pooled_bytes.optimizer.home
        assert card.predicted_peak_bytes <= 170 * MIB < card.predicted_peak_bytes + GRANULE


@pytest.fixture
def lopsided(make_chain):
    """A block of 64 MiB, which takes 323 MiB alone, and one of 16 MiB."""
    profile = make_chain(2)
    heavy = replace(profile.layers[0], weight_nbytes=64 * MIB, trainable_nbytes=64 * MIB, trained_tensors=(64 * MIB,))
    return replace(profile, layers=(heavy, profile.layers[1]))


def test_a_peer_with_room_comes_before_the_host(lopsided):
    """
    card 0  |# # # # g g g g s s s s s s|        # weights, g gradients, s state and temporaries
    card 1  |# g s s . + + - - - - - - -|        + guests, - room that is left
    """
    plan = planned(virtual_topology([300 * MIB] * 2, "nvlink3x4"), lopsided, micro_batches=1)
    first, second = plan.cards
    assert first.pooled_bytes.all.on_peers == second.predicted_bytes.guests > 0
    assert plan.host_spill_bytes == 0
    own = second.predicted_peak_bytes - second.predicted_bytes.guests
    assert own + second.predicted_bytes.guests < own + second.pool_limit_bytes <= second.capacity_bytes
    assert planned(virtual_topology([300 * MIB] * 2, "nvlink3x4"), lopsided, host_bytes=0).feasible


def test_without_a_link_between_them_it_goes_to_the_host(lopsided):
    plan = planned(virtual_topology([300 * MIB] * 2, "host"), lopsided, micro_batches=1)
    assert plan.host_spill_bytes == plan.cards[0].pooled_bytes.all.away + GRANULE
    assert [card.predicted_bytes.guests for card in plan.cards] == [0, 0]
    assert not planned(virtual_topology([300 * MIB] * 2, "host"), lopsided, host_bytes=0).feasible


def test_weights_are_spilled_when_state_is_not_enough(make_chain):
    plan = planned(virtual_topology([100 * MIB] * 2), make_chain(8))
    assert plan.feasible
    for card in plan.cards:
        assert card.spilled_layers
        assert set(card.spilled_layers) <= set(card.layers)
        assert card.pooled_bytes.optimizer.home == 0
        assert card.predicted_spill_s > 0
        assert card.predicted_spill_s < card.predicted_busy_s


def test_temporaries_are_spilled_also_where_there_is_no_state(make_chain):
    card = planned(virtual_topology([150 * MIB]), make_chain(4), optimizer="sgd-weight-decay").cards[0]
    assert card.spills_optimizer
    assert card.pooled_bytes.optimizer.total == 0
    assert card.pooled_bytes.temporaries.total == 64 * MIB


def test_a_host_that_is_too_small_is_named_with_what_would_do(make_chain):
    topology, profile = virtual_topology([170 * MIB] * 2), make_chain(8)
    needed = planned(topology, profile).host_spill_bytes
    plan = planned(topology, profile, spill=needed // 4)
    assert not plan.feasible
    advised = int(re.search(r"at least (\d+) MiB of host memory", plan.reason)[1]) * MIB
    assert needed // 4 < advised
    assert make_plan(profile, topology, spill=advised).feasible
    assert make_plan(profile, topology, spill="auto", host_bytes=advised).feasible
    assert not make_plan(profile, topology, spill=advised - 16 * MIB).feasible


def test_a_card_that_is_too_small_for_what_must_stay_is_named(make_chain):
    plan = planned(virtual_topology([40 * MIB] * 2), make_chain(8, batch_size=64))
    assert not plan.feasible
    assert re.match(r"card \d \(virtual card \d\) has 40 MiB", plan.reason)
    assert "elsewhere" in plan.reason
    assert "gradients 64 MiB" in plan.reason
    advised = re.search(r"cards of at least ([\d.]+) MiB each", plan.reason)[1]
    assert planned(virtual_topology([int(float(advised) * 1.01 * MIB)] * 2), make_chain(8, batch_size=64)).feasible


def test_a_smaller_batch_is_advised_where_it_fits_with_spilling(make_chain):
    profile = make_chain(4, batch_size=64, saved_nbytes=256 * MIB, weight=32 * MIB)
    topology = virtual_topology([128 * MIB] * 2)
    reason = planned(topology, profile).reason
    advised = int(re.search(r"batch of at most (\d+) samples", reason)[1])
    assert planned(topology, profile, batch_size=advised).feasible
    assert not planned(topology, profile, batch_size=advised + 1).feasible
    assert largest_batch(profile, topology, limit=63, limits=Limits(host_bytes=PLENTY)) == advised
    assert largest_batch(profile, topology, limit=63) < advised


def test_the_number_of_micro_batches_is_chosen_with_what_is_spilled(make_chain):
    # Every micro-batch reads all spilled weights: with few of them there is less to read.
    topology = virtual_topology([4 * GIB, 4 * GIB])
    free = make_plan(make_chain(8), topology).micro_batches
    tight = planned(virtual_topology([96 * MIB] * 2), make_chain(8))
    assert tight.feasible
    assert tight.micro_batches < free
    steps = [planned(virtual_topology([96 * MIB] * 2), make_chain(8), micro_batches=m) for m in (1, 2, 4, 8)]
    assert tight.predicted_step_s == min(plan.predicted_step_s for plan in steps if plan.feasible)


def test_more_memory_is_never_slower(make_chain):
    steps = []
    for memory in range(90, 330, 12):
        plan = planned(virtual_topology([memory * MIB] * 2, "pcie4x16"), make_chain(8), micro_batches=4)
        steps.append(plan.predicted_step_s)
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.3 * steps[-1]


def test_a_large_model_on_many_cards_is_planned(make_chain):
    profile = make_chain(blocks=120, batch_size=32)
    plan = planned(virtual_topology([700 * MIB] * 8), profile)
    assert plan.feasible
    assert [len(card.layers) for card in plan.cards] == [15] * 8
    assert plan.host_spill_bytes > GIB


@settings(max_examples=60)
@given(data=st.data())
def test_no_card_and_no_host_is_ever_over_full(tight, data):
    profile, topology = data.draw(tight())
    host_bytes = data.draw(st.sampled_from([0, 100 * MIB, PLENTY]))
    plan = planned(topology, profile, optimizer=data.draw(optimizers), host_bytes=host_bytes)
    assert Plan.from_json(plan.to_json()) == plan
    if not plan.feasible:
        return
    assert plan.host_spill_bytes <= host_bytes
    assert sum(card.pooled_bytes.all.host for card in plan.cards) <= plan.host_spill_bytes
    for card in plan.cards:
        own = card.pooled_bytes.all.home
        assert card.predicted_peak_bytes <= card.capacity_bytes
        assert own + card.predicted_bytes.guests <= card.pool_limit_bytes or not plan.spills
        # Whatever the pool does within its limit, the card holds it beside the rest.
        held = card.predicted_bytes.weights - card.pooled_bytes.weights.home + card.predicted_bytes.gradients
        if card.pooled_bytes.all.total:
            assert held + card.pool_limit_bytes <= card.capacity_bytes
    guests = sum(card.predicted_bytes.guests for card in plan.cards)
    assert guests == sum(card.pooled_bytes.all.on_peers for card in plan.cards)


@settings(max_examples=25)
@given(data=st.data())
def test_what_fits_without_spilling_is_planned_as_if_there_were_none(tight, data):
    profile, topology = data.draw(tight())
    optimizer = data.draw(optimizers)
    never = make_plan(profile, topology, optimizer=optimizer)
    plan = planned(topology, profile, optimizer=optimizer)
    if never.feasible:
        assert plan == replace(never, spill="auto")
        assert not plan.spills
        assert plan.host_spill_bytes == 0
    elif plan.feasible:
        assert plan.spills


@settings(max_examples=60)
@given(data=st.data())
def test_as_little_is_spilled_as_the_placement_needs_and_the_host_comes_last(tight, data):
    profile, topology = data.draw(tight())
    plan = planned(topology, profile)
    if not plan.spills or not plan.feasible:
        return
    positions = {layer.name: position for position, layer in enumerate(profile.layers)}
    model = MemoryModel(profile, micro_batches=plan.micro_batches, optimizer="adamw")
    cost, ways = optimizer_cost("adamw"), Ways(topology)
    for card in plan.cards:
        held = [positions[name] for name in card.layers]
        gathers = profile.calls[-1].layer in card.layers
        pooled = card.pooled_bytes.all
        if model.peak(held, gathers=gathers).total <= card.capacity_bytes:
            assert card.pooled_bytes == PooledBytes()
            continue
        trainable = model.trainable_nbytes(held)
        needed = model.staying(held, gathers=gathers).total + (cost.state + cost.temporaries) * trainable
        lost = pooled.total - (cost.state + cost.temporaries) * trainable
        lost -= sum(profile.layers[positions[name]].weight_nbytes for name in card.spilled_layers)
        assert lost >= 0
        assert needed - card.capacity_bytes <= pooled.away <= needed - card.capacity_bytes + lost + GRANULE
        if pooled.host:
            free = [plan.cards[peer].pool_limit_bytes for peer in ways.peers[card.index]]
            taken = [
                plan.cards[peer].predicted_bytes.guests + plan.cards[peer].pooled_bytes.all.home
                for peer in ways.peers[card.index]
            ]
            assert free == taken


@settings(max_examples=60)
@given(data=st.data())
def test_the_same_placement_is_never_slower_with_more_memory(tight, data):
    profile, topology = data.draw(tight())
    micro_batches = data.draw(st.integers(1, profile.batch_size))
    limits = Limits(host_bytes=PLENTY)
    search = SpillSearch(profile, topology, limits, micro_batches)
    cut = search.first_cut()
    if cut is None:
        return
    more = data.draw(st.integers(0, 100 * MIB))
    cards = tuple(replace(card, memory_bytes=card.memory_bytes + more) for card in topology.cards)
    larger = SpillSearch(profile, replace(topology, cards=cards), limits, micro_batches)
    before, after = cut.candidate, larger.candidate(cut.order, cut.runs)
    slowest = min(way for way in (*search._ways.host_bytes_per_s, *search._ways.nearest_bytes_per_s))
    passes = 2 + 2 * micro_batches * len(profile.calls)
    a_granule_s = len(cards) * GRANULE * passes / slowest
    assert after.time.step_s <= before.time.step_s + a_granule_s
    assert after.away_bytes <= before.away_bytes + len(cards) * len(profile.layers) * GRANULE


@settings(max_examples=30)
@given(data=st.data())
def test_what_the_search_calls_feasible_is_planned(tight, data):
    profile, topology = data.draw(tight())
    limits = Limits(host_bytes=data.draw(st.sampled_from([0, 64 * MIB, PLENTY])))
    feasible = is_feasible(profile, topology, limits, 1)
    plan = make_plan(profile, topology, spill=limits.host_bytes, micro_batches=1)
    assert plan.feasible == feasible
    assert feasible or Search(profile, topology, Limits(), 1).best() is None


def test_the_json_form_says_where_everything_lies(make_chain):
    plan = planned(virtual_topology([200 * MIB, 900 * MIB], "nvlink3x4"), make_chain(16))
    body = json.loads(plan.to_json())
    assert (body["schema"], body["spill"], body["host_spill_bytes"]) == (1, "auto", plan.host_spill_bytes)
    first, second = body["cards"]
    assert set(first["pooled_bytes"]) == {"weights", "optimizer", "temporaries"}
    assert set(first["pooled_bytes"]["optimizer"]) == {"home", "peers", "host"}
    assert first["pooled_bytes"]["optimizer"]["peers"][0]["card"] == 1
    assert first["spilled_layers"] == list(plan.cards[0].spilled_layers)
    assert first["spills_optimizer"] is True
    assert second["spills_optimizer"] is False
    assert second["predicted_bytes"]["guests"] == second["pool_limit_bytes"]
    assert second["predicted_peak_bytes"] == sum(second["predicted_bytes"].values())
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_written_before_there_was_spilling_is_read(make_chain):
    plan = make_plan(make_chain(), virtual_topology([GIB] * 2))
    body = plan.to_dict()
    for name in ("spill", "host_spill_bytes"):
        del body[name]
    for card in body["cards"]:
        for name in ("spilled_layers", "spills_optimizer", "pooled_bytes", "pool_limit_bytes", "predicted_spill_s"):
            del card[name]
    assert Plan.from_json(json.dumps(body)) == plan


@pytest.mark.parametrize("wrong", [{"spill": "sometimes"}, {"spill": -1}, {"spill": True}, {"host_bytes": -1}], ids=str)
def test_arguments_that_make_no_sense_are_refused(make_chain, wrong):
    with pytest.raises(ConfigurationError):
        planned(virtual_topology([GIB] * 2), make_chain(), **wrong)
