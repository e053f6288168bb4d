import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.planning.explain import compress_names, explain
from poolrt.planning.planner import make_plan
from poolrt.topology.build import virtual_topology
from poolrt.units import format_nbytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["head"], ["head"]),
        (["layer.0", "layer.1", "layer.2"], ["layer.0-2"]),
        (["embeddings", "layer.9", "layer.10", "head"], ["embeddings", "layer.9-10", "head"]),
        (["layer.0", "layer.2"], ["layer.0", "layer.2"]),
        (["layer.1", "layer.0"], ["layer.1", "layer.0"]),
        (["encoder.0.mlp", "encoder.1.mlp", "decoder.2.mlp"], ["encoder.0-1.mlp", "decoder.2.mlp"]),
        (["a.0.0", "a.0.1", "a.1.1"], ["a.0.0-1", "a.1.1"]),
        (["0", "1", "2"], ["0-2"]),
    ],
)
def test_names_that_count_up_in_one_place_are_joined(names, short):
    assert compress_names(names) == short


@given(st.lists(st.text("ab.01", min_size=1, max_size=5)))
def test_the_first_and_the_last_name_can_be_read_back(names):
    short = compress_names(names)
    assert len(short) <= len(names)
    if names:
        assert re.sub(r"(\d+)-\d+", r"\1", short[0]) == names[0]
        assert re.sub(r"\d+-(\d+)", r"\1", short[-1]) == names[-1]


@pytest.fixture
def plan(make_chain):
    return make_plan(make_chain(), virtual_topology([4 * GIB] * 2))


def rows(text):
    return [line.split() for line in text.splitlines() if re.match(r"\s+\d+ ", line)]


def test_every_card_has_a_row_with_its_layers_bytes_and_share_of_time(plan):
    text = explain(plan)
    assert plan.explain() == text
    first, second = rows(text)
    assert (first[0], first[1], second[0], second[1]) == ("0", "block.0-3", "1", "block.4-7")
    for card, row in zip(plan.cards, (first, second), strict=True):
        line = " ".join(row)
        assert format_nbytes(card.predicted_bytes.weights) in line
        assert format_nbytes(card.predicted_peak_bytes) in line
        assert f"{card.predicted_peak_bytes / card.capacity_bytes:.0%}" in line
        assert line.endswith(f"{card.predicted_busy_s / plan.predicted_step_s:.0%}")


def test_schedule_and_notes_follow(plan):
    text = explain(replace(plan, notes=("Something [to] know.",)))
    assert f"{plan.micro_batches} micro-batches" in text
    assert "gpipe" in text
    assert "- Something [to] know." in text


def test_an_infeasible_plan_begins_with_its_reason(make_chain):
    plan = make_plan(make_chain(), virtual_topology([GIB // 64] * 2))
    lines = explain(plan).splitlines()
    assert plan.reason in lines[0]
    assert len(rows(explain(plan))) == 2


def test_no_line_ends_in_spaces_and_none_is_coloured(plan):
    text = explain(plan)
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
    assert "\x1b" not in text
