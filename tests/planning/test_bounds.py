from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.bounds import Bounds
from poolrt.planning.memory import MemoryModel


@settings(max_examples=150)
@given(data=st.data())
def test_what_stays_lies_between_the_bounds(profiles, data):
    profile = data.draw(profiles())
    choices = {
        "micro_batches": data.draw(st.integers(1, profile.batch_size)),
        "optimizer": data.draw(st.sampled_from(["adamw", "sgd", "none"])),
    }
    bounds, model = Bounds(profile, **choices), MemoryModel(profile, **choices)
    last = data.draw(st.integers(1, len(profile.layers)))
    first = data.draw(st.integers(0, last - 1))
    stays = model.staying(range(first, last), gathers=data.draw(st.booleans())).total
    stays -= sum(layer.weight_nbytes for layer in profile.layers[first:last])
    assert bounds.at_least(first, last) <= stays <= bounds.at_most(first, last)


@settings(max_examples=60)
@given(data=st.data())
def test_the_floor_of_all_cards_is_below_the_sum_of_their_peaks(profiles, data):
    profile = data.draw(profiles())
    model = MemoryModel(profile, micro_batches=1, optimizer="adamw")
    border = data.draw(st.integers(0, len(profile.layers)))
    parts = (range(border), range(border, len(profile.layers)))
    assert model.floor_of_all_nbytes <= sum(model.peak(part, gathers=False).total for part in parts)


def test_a_chain_with_one_micro_batch_by_hand(make_chain):
    mib = 1 << 20
    bounds = Bounds(make_chain(3), micro_batches=1, optimizer="adamw")
    assert bounds.at_least(0, 3) == 3 * 16 * mib
    # Gradients; what was saved, and read by all but the first; what passes, a workspace and a second gradient.
    assert bounds.at_most(0, 3) == (3 * 16 + 3 * 8 + 2 + 2 + 3 + 8) * mib
