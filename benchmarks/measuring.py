"""What every benchmark shares: contenders timed in turn, medians of ratios, JSON that says where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

_stderr = Console(stderr=True)

Times = dict[str, list[float]]
"""seconds of every round, by contender"""


def interleaved(contenders: Mapping[str, Callable[[], float | None]], rounds: int, warmup: int = 1) -> Times:
    """Runs all contenders once per round, so that whatever else the machine does falls on all of them alike.

    Every other round goes backwards: a machine that grows slower or faster favours nobody.

    Args:
        contenders: what to run; one that returns seconds has timed itself.
        rounds: how many times each is measured.
        warmup: rounds before those that are not counted.

    Returns:
        Seconds per contender, one for each round, in order.
    """
    times: Times = {name: [] for name in contenders}
    turns = range(warmup + rounds)
    for turn in track(turns, description=f"{len(contenders)} contenders, in turn", console=_stderr, transient=True):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            reported = contenders[name]()
            elapsed = time.perf_counter() - start if reported is None else reported
            if turn >= warmup:
                times[name].append(elapsed)
    return times


def benchmark_parser(
    description: str | None, *, quick: str, cuda: str = "", rounds: int | None = None
) -> argparse.ArgumentParser:
    """The options that benchmarks have in common.

    Args:
        description: the benchmark's docstring.
        quick: what --quick leaves out.
        cuda: what --cuda does; "" for a benchmark that has no such option.
        rounds: measured rounds if none are asked for; None for a benchmark that has no such option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    if cuda:
        parser.add_argument("--cuda", action="store_true", help=cuda)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="measured rounds")
    parser.add_argument("--json", type=Path, help="where to write the results")
    return parser


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios of two contenders' times in the same round."""
    return statistics.median(above / below for above, below in zip(numerator, denominator, strict=True))


def training_step(model: nn.Module, parts: Sequence[Mapping[str, torch.Tensor]]) -> Callable[[], None]:
    """Forward and backward over all parts of a batch of a model that returns its loss; gradients start from nothing."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        losses = [model(**part).loss / len(parts) for part in parts]
        for loss in losses:
            loss.backward()

    return run


def environment() -> dict[str, Any]:
    """Where and how this process runs: date (UTC), command, versions, processor, cores, and the first GPU if any."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"card": properties.name, "card_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_json(path: Path | None, benchmark: str, results: Mapping[str, Any]) -> None:
    """Writes results with their environment as JSON, schema 1; nothing when there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"schema": 1, "benchmark": benchmark, "environment": environment(), **results}
    path.write_text(json.dumps(body, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, or nothing if the file is not there."""
    if not path.is_file():
        return {}
    body: dict[str, Any] = json.loads(path.read_text())
    return body
