import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import PlanError
from poolrt.planning.plan import Plan, PredictedBytes
from poolrt.planning.planner import make_plan
from poolrt.topology.build import virtual_topology


@settings(max_examples=30)
@given(data=st.data())
def test_json_brings_back_the_same_plan(profiles, data):
    memory = data.draw(st.lists(st.integers(500, 6000), min_size=1, max_size=3))
    plan = make_plan(data.draw(profiles()), virtual_topology(memory))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.fixture
def plan(make_chain):
    return make_plan(make_chain(), virtual_topology([1 << 30] * 2))


def test_the_json_form_keeps_the_keys_of_the_contract(plan):
    body = json.loads(plan.to_json())
    assert body["schema"] == 1
    assert {"micro_batches", "schedule", "predicted_step_s", "notes", "cards", "feasible", "reason"} <= set(body)
    card = body["cards"][0]
    assert {"index", "layers", "predicted_peak_bytes", "predicted_bytes"} <= set(card)
    assert set(card["predicted_bytes"]) == {"weights", "gradients", "optimizer", "activations", "workspace"}
    assert card["predicted_peak_bytes"] == sum(card["predicted_bytes"].values())


def test_unknown_keys_are_passed_over(plan):
    body = plan.to_dict() | {"added_later": 1}
    assert Plan.from_json(json.dumps(body)) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "cards": 3}'])
def test_other_text_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_cards_are_found_by_layer(plan):
    card_of = plan.card_of()
    assert {layer for layer, card in card_of.items() if card == 1} == set(plan.cards[1].layers)


def test_a_peak_is_the_sum_of_its_kinds(plan):
    kinds = PredictedBytes(weights=1, gradients=2, optimizer=4, activations=8, workspace=16)
    assert replace(plan.cards[0], predicted_bytes=kinds).predicted_peak_bytes == 31
