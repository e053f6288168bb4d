import re
from dataclasses import replace

import pytest

from poolrt.planning.explain import explain
from poolrt.planning.planner import make_plan
from poolrt.topology.build import virtual_topology
from poolrt.units import format_nbytes, format_seconds

MIB = 1 << 20
GIB = 1 << 30


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


@pytest.fixture
def spilling(make_chain):
    """One card gives room, the other has far too little."""
    return make_plan(
        make_chain(16), virtual_topology([200 * MIB, 900 * MIB], "nvlink3x4"), spill="auto", host_bytes=GIB
    )


def test_what_is_spilled_is_in_a_table_of_its_own(spilling):
    lines = explain(spilling).splitlines()
    at = next(index for index, line in enumerate(lines) if "from the pool" in line)
    optimizer = next(line for line in lines[at:] if "optimizer state" in line)
    tiers = spilling.cards[0].pooled_bytes.optimizer
    assert optimizer.split()[0] == "0"
    assert format_nbytes(tiers.peers[0].nbytes) in optimizer
    assert optimizer.endswith(format_nbytes(tiers.host))
    assert "guests" in lines[1]
    assert format_nbytes(spilling.cards[1].predicted_bytes.guests) in "\n".join(lines[:at])


def test_what_is_spilled_is_in_sentences_with_what_it_costs(spilling):
    card = spilling.cards[0]
    tiers = card.pooled_bytes.optimizer
    assert (
        f"- optimizer state of card 0: {format_nbytes(tiers.total)}, of which {format_nbytes(tiers.peers[0].nbytes)} "
        f"on card 1 and {format_nbytes(tiers.host)} on the host"
    ) in explain(spilling)
    assert f"{format_seconds(card.predicted_spill_s)} of each step" in explain(spilling)
    weights = next(line for line in explain(spilling).splitlines() if line.startswith("- weights of card 0"))
    assert "block.0-" in weights


def test_nothing_is_said_of_the_pool_where_nothing_is_spilled(make_chain):
    plan = make_plan(make_chain(), virtual_topology([4 * GIB] * 2), spill="auto", host_bytes=GIB)
    text = explain(plan)
    assert not any(word in text for word in ("pool", "guests", "elsewhere"))
