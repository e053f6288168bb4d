from dataclasses import replace

import pytest

from poolrt.planning.pooled_bytes import PeerBytes, PooledBytes, Tiers
from poolrt.planning.profile import TiedParameter
from poolrt.planning.spill import CardSpill
from poolrt.planning.spill_time import reading_of_step_s, reading_s, slowed, update_s, with_updates
from poolrt.planning.step_time import StepTime, predict_step
from poolrt.planning.ways import Ways
from poolrt.topology.build import virtual_topology

MIB = 1 << 20
NONE = CardSpill(spills=False)


@pytest.fixture
def ways():
    return Ways(virtual_topology([MIB] * 2))


def on_host(nbytes):
    return Tiers(host=nbytes)


def spilled_weights(ways, *seconds):
    """Card 0 has the weights of the first layers on the host, as much as it reads in these seconds."""
    rate = ways.host_bytes_per_s[0]
    tiers = tuple((position, on_host(round(s * rate))) for position, s in enumerate(seconds))
    return CardSpill(spills=True, layers=tiers, pooled=PooledBytes(weights=Tiers.sum(x for _, x in tiers)))


def test_every_micro_batch_reads_spilled_weights_forward_and_backward(make_chain, ways):
    profile, card_of = make_chain(3), {"block.0": 0, "block.1": 0, "block.2": 1}
    waits = reading_s(profile, ways, 0, spilled_weights(ways, 1.0, 0.25), card_of, micro_batches=4)
    slow = slowed(profile, waits)
    extra = [after.forward_s - call.forward_s for call, after in zip(profile.calls, slow.calls, strict=True)]
    assert extra == pytest.approx([4.0, 1.0, 0.0])
    assert [call.backward_s - call.forward_s for call in slow.calls] == pytest.approx([0.01] * 3)
    assert reading_of_step_s(profile, waits, trains=True) == pytest.approx(10.0)
    assert reading_of_step_s(profile, waits, trains=False) == pytest.approx(5.0)


def test_what_is_read_lengthens_the_step_by_as_much_on_one_card(make_chain, ways):
    profile, card_of = make_chain(3), {"block.0": 0, "block.1": 0, "block.2": 0}
    waits = reading_s(profile, ways, 0, spilled_weights(ways, 1.0), card_of, micro_batches=4)
    topology = virtual_topology([MIB] * 2)
    plain, slow = (
        predict_step(which, topology, card_of, micro_batches=4, call_overhead_s=0.0)
        for which in (profile, slowed(profile, waits))
    )
    assert slow.step_s - plain.step_s == pytest.approx(2 * 4 * 1.0)


def test_nothing_spilled_costs_nothing(make_chain, ways):
    profile = make_chain(3)
    assert slowed(profile, reading_s(profile, ways, 0, NONE, {}, micro_batches=4)) is profile
    assert update_s(profile, ways, 0, NONE) == 0.0


@pytest.mark.parametrize(("card", "seconds"), [(0, 1.0), (1, 0.0)])
def test_a_tied_weight_is_read_from_where_it_lies_only_on_the_card_of_its_home(make_chain, ways, card, seconds):
    profile = replace(make_chain(3), tied=(TiedParameter(name="w", nbytes=MIB, layers=("block.0", "block.2")),))
    card_of = {"block.0": 0, "block.1": 0, "block.2": card}
    slow = slowed(profile, reading_s(profile, ways, 0, spilled_weights(ways, 1.0), card_of, micro_batches=1))
    assert slow.calls[2].forward_s - profile.calls[2].forward_s == pytest.approx(seconds)
    assert slow.calls[0].forward_s - profile.calls[0].forward_s == pytest.approx(1.0)


def test_the_optimizer_reads_and_writes_state_temporaries_and_trained_weights(make_chain, ways):
    profile, rate = make_chain(2), ways.host_bytes_per_s[0]
    frozen = replace(profile.layers[1], trainable_nbytes=0)
    profile = replace(profile, layers=(profile.layers[0], frozen))
    spill = replace(
        spilled_weights(ways, 1.0, 8.0),
        pooled=PooledBytes(optimizer=on_host(round(2.0 * rate)), temporaries=on_host(round(4.0 * rate))),
    )
    assert update_s(profile, ways, 0, spill) == pytest.approx(2 * (1.0 + 2.0 + 4.0))


def test_bytes_at_home_are_free_and_those_on_a_peer_cost_its_link(make_chain):
    ways = Ways(virtual_topology([MIB] * 2, "nvlink3x4"))
    tiers = Tiers(home=MIB, peers=(PeerBytes(card=1, nbytes=MIB),))
    spill = CardSpill(spills=True, pooled=PooledBytes(optimizer=tiers))
    assert update_s(make_chain(1), ways, 0, spill) == pytest.approx(2 * MIB / ways.nearest_bytes_per_s[0])


def test_cards_update_at_the_same_time_unless_they_share_a_device():
    time = StepTime(step_s=10.0, busy_s=(4.0, 5.0))
    assert with_updates(time, [1.0, 2.0], ["cuda:0", "cuda:1"]) == StepTime(step_s=12.0, busy_s=(5.0, 7.0))
    assert with_updates(time, [1.0, 2.0], ["cuda:0", "cuda:0"]) == StepTime(step_s=13.0, busy_s=(5.0, 7.0))
