from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.demand import Demands, reads_of_layers
from poolrt.planning.granules import GRANULE, whole_granules
from poolrt.planning.memory import MemoryModel
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.profile import TiedParameter

MIB = 1 << 20


@pytest.fixture
def of_chain(make_chain):
    """The demand of a card that holds all of a chain of 4 blocks, with one micro-batch and AdamW.

    Weights take 64 MiB, gradients 64, state 128, and the optimizer's step 64 more: 320 MiB. Activations are 8 MiB when
    all gradients are there, with a workspace of 3.
    """

    def of(usable_bytes, **options):
        demands = Demands(make_chain(4), **{"micro_batches": 1, "optimizer": "adamw"} | options)
        return demands.of(range(4), usable_bytes=usable_bytes, gathers=False)

    return of


def test_what_fits_is_left_alone_and_says_what_room_is_left(of_chain):
    demand = of_chain(325 * MIB)
    assert not demand.spills
    assert demand.stays.total == 320 * MIB
    assert demand.room == 4 * MIB
    assert (demand.layers, demand.optimizer, demand.temporaries) == ((), 0, 0)


def test_the_optimizer_goes_first(of_chain):
    """
    memory that may be used  |========================|          300 MiB
    outside the pool         | weights | gradients | a |         64 + 64 + 8 + 3 MiB
    from the pool                                      | room |  160 MiB of 192
    """
    demand = of_chain(300 * MIB)
    assert demand.spills
    assert demand.layers == ()
    assert (demand.optimizer, demand.temporaries) == (128 * MIB, 64 * MIB)
    assert demand.stays.total == (64 + 64 + 8 + 3) * MIB
    assert demand.stepping.total == (64 + 64) * MIB
    assert demand.room == 160 * MIB


def test_weights_follow_when_the_optimizer_is_not_enough(of_chain):
    demand = of_chain(120 * MIB)
    # 139 MiB stay beside the optimizer's: two blocks of 16 MiB have to go.
    assert [layer.nbytes for layer in demand.layers] == [16 * MIB] * 2
    assert demand.stays.weights == 32 * MIB
    assert demand.room == 12 * MIB
    assert demand.optimizer == 128 * MIB


def test_inference_spills_weights_alone(of_chain):
    demand = of_chain(40 * MIB, optimizer="none")
    assert (demand.optimizer, demand.temporaries) == (0, 0)
    assert demand.weights == 32 * MIB
    assert demand.stays.total == (32 + 2 + 2) * MIB


def test_gradients_and_activations_stay(make_chain, of_chain):
    demands = Demands(make_chain(4), micro_batches=1, optimizer="adamw")
    stays = (64 + 8 + 3) * MIB
    assert demands.fits(0, 4, usable_bytes=stays, gathers=False)
    assert not demands.fits(0, 4, usable_bytes=stays - 1, gathers=False)
    over_full = of_chain(stays - MIB)
    assert over_full.weights == 64 * MIB
    assert over_full.stays.total == stays
    assert over_full.room == 0


def test_the_coldest_weights_go_first_and_among_equals_the_largest(make_chain):
    # block.0 is called twice; of the others block.2 is the largest.
    profile = make_chain(4)
    profile = replace(profile, calls=(*profile.calls, profile.calls[0]))
    larger = replace(profile.layers[2], weight_nbytes=24 * MIB, frozen_tensors=(8 * MIB,))
    profile = replace(profile, layers=(*profile.layers[:2], larger, profile.layers[3]))
    demands = Demands(profile, micro_batches=1, optimizer="sgd")
    full = demands.of(range(4), usable_bytes=GRANULE << 20, gathers=False).stays.total

    def spilled(nbytes):
        demand = demands.of(range(4), usable_bytes=full - nbytes, gathers=False)
        return [layer.position for layer in demand.layers]

    # The order is that of asking the pool for memory: what is read most often lies nearest.
    assert spilled(1) == spilled(24 * MIB) == [2]
    assert spilled(24 * MIB + 1) == [1, 2]
    assert spilled(40 * MIB + 1) == [3, 1, 2]
    assert spilled(56 * MIB + 1) == [0, 3, 1, 2]


def test_a_tied_weight_is_read_by_all_its_users(make_chain):
    profile = replace(make_chain(3), tied=(TiedParameter(name="w", nbytes=MIB, layers=("block.0", "block.2")),))
    assert reads_of_layers(profile) == [2, 1, 1]


@settings(max_examples=100)
@given(data=st.data())
def test_no_more_is_pooled_away_than_lacks_room(large_profiles, data):
    profile = data.draw(large_profiles())
    optimizer = data.draw(st.sampled_from(["adamw", "sgd", "adagrad", "none"]))
    choices = {"micro_batches": data.draw(st.integers(1, profile.batch_size)), "optimizer": optimizer}
    usable = data.draw(st.integers(MIB, 400 * MIB))
    held, gathers = range(len(profile.layers)), data.draw(st.booleans())
    demands, model, cost = Demands(profile, **choices), MemoryModel(profile, **choices), optimizer_cost(optimizer)
    demand = demands.of(held, usable_bytes=usable, gathers=gathers)
    if not demands.fits(0, len(held), usable_bytes=usable, gathers=gathers):
        assert demand.stays.total > usable
        return
    assert demand.stays.total + demand.room <= usable < demand.stays.total + demand.room + GRANULE
    assert demand.spills == (model.peak(held, gathers=gathers).total > usable)
    if demand.spills:
        trainable = model.trainable_nbytes(held)
        needed = model.staying(held, gathers=gathers).total + (cost.state + cost.temporaries) * trainable
        away = demand.weights + demand.optimizer + demand.temporaries - demand.room
        lost = (cost.state + cost.temporaries + 2) * 3 * len(held) * 3 * GRANULE
        assert needed - usable <= away <= needed - usable + lost


@settings(max_examples=60)
@given(data=st.data())
def test_no_layer_is_pooled_in_vain(large_profiles, data):
    profile = data.draw(large_profiles())
    demands = Demands(profile, micro_batches=1, optimizer="adamw")
    usable = data.draw(st.integers(MIB, 300 * MIB))
    demand = demands.of(range(len(profile.layers)), usable_bytes=usable, gathers=False)
    if demand.layers:
        # Without the hottest of them the card would be too small.
        last_chosen = profile.layers[demand.layers[0].position]
        assert demand.stays.total + last_chosen.weight_nbytes > usable
    assert demand.weights == whole_granules(demand.weights)
