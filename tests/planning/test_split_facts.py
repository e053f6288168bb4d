"""From the profile of one card to the profiles of cards that share its layers.

one card     attention saves 100 of 120, what follows 20; the head saves 60, the loss 40 of that
lead card    50 + 20                                       30, the loss 20        (the logits stay in parts)
other card   50 + 8 copied                                 30, the loss 20
"""

from __future__ import annotations

import pytest

from poolrt.planning.planner import plan_stages
from poolrt.planning.profile import CallFacts, LayerFacts, Profile
from poolrt.planning.split_facts import CardWeights, RegionCall, SplitFacts, profile_of_card
from poolrt.topology.build import virtual_topology

PROFILE = Profile(
    model="m",
    batch_size=2,
    layers=(
        LayerFacts(name="block", weight_nbytes=80, trainable_nbytes=80),
        LayerFacts(name="head", weight_nbytes=40, trainable_nbytes=40),
    ),
    calls=(
        CallFacts(
            layer="block", forward_s=4.0, backward_s=8.0, saved_nbytes=120, forward_workspace_nbytes=20,
            backward_workspace_nbytes=40, output_nbytes=8,
        ),
        CallFacts(
            layer="head", forward_s=1.0, backward_s=2.0, saved_nbytes=60, forward_workspace_nbytes=10,
            backward_workspace_nbytes=10, output_nbytes=40, glue_saved_nbytes=40, glue_workspace_nbytes=40,
        ),
    ),
    input_nbytes=16,
    output_nbytes=40,
    returns_loss=True,
)  # fmt: skip


def facts(shares: tuple[float, ...]) -> SplitFacts:
    attention = RegionCall(
        module="block.attention", call=0, shares=shares, forward_s=4.0, copied_nbytes=8, saved_nbytes=100,
        output_nbytes=8,
    )  # fmt: skip
    head = RegionCall(
        module="head", call=1, shares=shares, forward_s=1.0, copied_nbytes=0, saved_nbytes=20, output_nbytes=40,
        in_parts=True,
    )  # fmt: skip
    weights = tuple(
        CardWeights(
            layers=tuple(
                LayerFacts(
                    name=layer.name,
                    weight_nbytes=round(layer.weight_nbytes * share),
                    trainable_nbytes=round(layer.trainable_nbytes * share),
                )
                for layer in PROFILE.layers
            ),
            tied=(),
        )
        for share in shares
    )
    return SplitFacts(
        profile=PROFILE,
        calls=(attention, head),
        weights=weights,
        modules=("block.attention", "head"),
        rest=("block.norm",),
        notes=("a note",),
    )


def test_the_lead_card_has_its_share_and_the_rest_and_the_others_have_copies():
    lead, other = (profile_of_card(facts((0.5, 0.5)), card) for card in range(2))
    assert [call.saved_nbytes for call in lead.calls] == [120 - 100 + 50, 60 - 20 + 10 - 40 + 20]
    assert [call.saved_nbytes for call in other.calls] == [50 + 8, 10 + 20]
    assert [call.glue_saved_nbytes for call in lead.calls] == [0, 20]
    assert [call.glue_workspace_nbytes for call in other.calls] == [0, 20]
    assert (lead.output_nbytes, other.output_nbytes) == (20, 20)
    assert (lead.input_nbytes, other.input_nbytes) == (16, 0)
    assert [call.output_nbytes for call in other.calls] == [0, 0], "what layers hand on stays on the lead card"


def test_all_cards_together_save_what_one_card_does_and_the_copies():
    cards = [profile_of_card(facts((0.5, 0.25, 0.25)), card) for card in range(3)]
    saved = sum(call.saved_nbytes for card in cards for call in card.calls)
    assert saved == sum(call.saved_nbytes for call in PROFILE.calls) + 2 * 8


def test_a_plan_names_what_is_split():
    topology = virtual_topology([1 << 20] * 2)
    plan = plan_stages([facts((0.5, 0.5))], topology, [(0, 1)], micro_batches=1)
    assert plan.feasible
    assert (plan.tensor_parallel, plan.micro_batches, plan.notes) == (2, 1, ("a note",))
    assert plan.split_modules == ("block.attention", "head")
    assert [card.layers for card in plan.cards] == [("block", "head")] * 2
    assert [card.predicted_bytes.weights for card in plan.cards] == [60, 60]
    # Virtual cards take turns in forward, 5 s, and work side by side in backward, 10 s / 2; then what crosses.
    assert plan.predicted_step_s == pytest.approx(10.0, abs=0.1)
    assert [card.predicted_busy_s for card in plan.cards] == pytest.approx([7.5, 7.5])


def test_a_card_that_is_too_small_is_named_with_what_is_missing():
    topology = virtual_topology([1 << 20, 64])
    plan = plan_stages([facts((0.5, 0.5))], topology, [(0, 1)], micro_batches=1)
    assert not plan.feasible
    assert plan.reason.startswith("card 1 ")
    assert "too little" in plan.reason
    assert "To make it fit" in plan.reason
