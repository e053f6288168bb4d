"""Predicted beside measured, as JSON and as a table."""

from __future__ import annotations

import json

import torch

from poolrt.planning.plan import CardPlan, Plan, PredictedBytes
from poolrt.reporting import Report, make_report
from poolrt.units import MIB


def plan() -> Plan:
    return Plan(
        model="m", topology="t", batch_size=8, micro_batches=4, schedule="gpipe", optimizer="adamw",
        predicted_step_s=0.5,
        cards=tuple(
            CardPlan(
                index=index,
                layers=("a", "b"),
                predicted_bytes=PredictedBytes(weights=2 * MIB, activations=MIB),
                capacity_bytes=8 * MIB,
            )
            for index in range(2)
        ),
    )  # fmt: skip


def report(peaks: tuple[int | None, ...], step_s: float | None = 0.25) -> Report:
    return Report(plan=plan(), measured_step_s=step_s, measured_peak_bytes=peaks)


def test_json_is_the_plans_with_what_was_measured() -> None:
    body = json.loads(report((2 * MIB, None)).to_json())
    for key, value in plan().to_dict().items():
        if key != "cards":
            assert body[key] == (list(value) if isinstance(value, tuple) else value)
    assert body["schema"] == 1
    assert body["measured_step_s"] == 0.25
    assert [card["measured_peak_bytes"] for card in body["cards"]] == [2 * MIB, None]
    assert [card["predicted_peak_bytes"] for card in body["cards"]] == [3 * MIB] * 2


def test_the_table_shows_both_and_the_difference() -> None:
    text = str(report((2 * MIB, None)))
    first, second = (line for line in text.splitlines() if "3 MiB" in line)
    assert "2 MiB" in first
    assert "+50.0%" in first
    assert "%" not in second
    assert "predicted 500 ms, measured 250 ms" in text


def test_what_crossed_is_told() -> None:
    devices = [torch.device("cpu")] * 2
    assert "copies between cards" not in str(make_report(plan(), devices, []))
    made = make_report(plan(), devices, [9.0, 2.0], (12, 3 * MIB))
    assert made.to_dict()["measured_crossings"] == 12
    assert made.to_dict()["measured_crossed_bytes"] == 3 * MIB
    assert "12 copies between cards, 3 MiB" in str(made)


def test_before_a_second_step_nothing_is_measured() -> None:
    assert "not measured" in str(report((None, None), None))
    devices = [torch.device("cpu")] * 2
    assert make_report(plan(), devices, []).measured_step_s is None
    assert make_report(plan(), devices, [9.0]).measured_step_s is None


def test_the_first_step_warms_up_and_the_rest_have_a_median() -> None:
    made = make_report(plan(), [torch.device("cpu")] * 2, [9.0, 1.0, 2.0, 6.0])
    assert made.measured_step_s == 2.0


def test_cards_that_share_a_device_have_no_peak_of_their_own() -> None:
    assert make_report(plan(), [torch.device("cpu")] * 2, []).measured_peak_bytes == (None, None)


def test_peaks_are_the_cards_own() -> None:
    import poolrt

    devices = [torch.device(card.device) for card in poolrt.virtual(cards=2, memory="16MiB").cards]
    for device in devices:
        torch.vcard.reset_peak_memory_stats(device)
    before = torch.vcard.max_memory_allocated(devices[1])
    torch.ones(1 << 18, device=devices[1])
    peaks = make_report(plan(), devices, []).measured_peak_bytes
    assert peaks == (torch.vcard.max_memory_allocated(devices[0]), before + MIB)
