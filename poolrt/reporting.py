"""Predicted beside measured, for people and as JSON."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from poolrt.planning.plan import Plan
from poolrt.units import format_nbytes, format_seconds


@dataclass(frozen=True, kw_only=True)
class Report:
    """A plan and what became of it."""

    plan: Plan
    measured_step_s: float | None
    """median seconds of forward plus backward; None before the second backward"""
    measured_peak_bytes: tuple[int | None, ...]
    """per card; None where cards share a device and cannot be told apart"""
    measured_crossings: int | None = None
    """copies between cards in one step; None before the first backward"""
    measured_crossed_bytes: int | None = None
    """their bytes"""

    def to_dict(self) -> dict[str, Any]:
        """The plan's keys plus what was measured: `measured_step_s`, ..., and `measured_peak_bytes` per card."""
        body = self.plan.to_dict()
        for name in ("measured_step_s", "measured_crossings", "measured_crossed_bytes"):
            body[name] = getattr(self, name)
        for card, peak in zip(body["cards"], self.measured_peak_bytes, strict=True):
            card["measured_peak_bytes"] = peak
        return body

    def to_json(self) -> str:
        """`to_dict` as JSON, schema 1."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        table = Table(title="predicted beside measured")
        for column in ("card", "layers", "predicted peak", "measured peak", "difference", "capacity"):
            table.add_column(column, justify="left" if column == "card" else "right")
        for card, measured in zip(self.plan.cards, self.measured_peak_bytes, strict=True):
            table.add_row(
                str(card.index),
                str(len(card.layers)),
                format_nbytes(card.predicted_peak_bytes),
                "-" if measured is None else format_nbytes(measured),
                "-" if not measured else f"{card.predicted_peak_bytes / measured - 1:+.1%}",
                format_nbytes(card.capacity_bytes),
            )
        text = io.StringIO()
        Console(file=text, width=110).print(table)
        measured_step = "not measured" if self.measured_step_s is None else format_seconds(self.measured_step_s)
        predicted_step = format_seconds(self.plan.predicted_step_s)
        step = f"step (forward + backward): predicted {predicted_step}, measured {measured_step}"
        if self.measured_crossings is not None and self.measured_crossed_bytes is not None:
            nbytes = format_nbytes(self.measured_crossed_bytes)
            step += f"; {self.measured_crossings} copies between cards, {nbytes}"
        return text.getvalue() + step


def make_report(
    plan: Plan, devices: Sequence[torch.device], step_s: Sequence[float], crossed: tuple[int, int] | None = None
) -> Report:
    """The report of a plan that has run.

    Args:
        plan: what was decided.
        devices: torch's device of each card.
        step_s: seconds of each step so far; the first one warms up and does not count.
        crossed: (tensors, bytes) copied between cards in one step.
    """
    settled = step_s[1:]
    return Report(
        plan=plan,
        measured_step_s=statistics.median(settled) if settled else None,
        measured_peak_bytes=tuple(_peak(device, devices) for device in devices),
        measured_crossings=None if crossed is None else crossed[0],
        measured_crossed_bytes=None if crossed is None else crossed[1],
    )


def _peak(device: torch.device, devices: Sequence[torch.device]) -> int | None:
    if devices.count(device) > 1 or device.type == "cpu":
        return None
    return int(torch.get_device_module(device).max_memory_allocated(device))
