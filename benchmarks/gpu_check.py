"""Tests and benchmarks on one CUDA GPU, cut into logical cards: what a machine without a GPU cannot show.

    make gpu-check                                  # sets up .venv first
    make gpu-check VENV=none PYTHON=python3         # with the torch that is there, nothing installed
    python benchmarks/gpu_check.py --json gpu.json

Ends with code 0 when everything passed, 1 when something failed, 2 when there is no GPU. Under 8 minutes: all parts
have a limit together and each has its own; a part that reaches one of them is reported as failed. The results are
written anew after every part.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measuring import read_json, write_json
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
NO_GPU = 2
TOGETHER_S = 470.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command of the check. `{json}` in it stands for the file it writes its results to."""

    name: str
    command: Sequence[str]
    limit_s: float


PARTS = (
    Part(name="tests", command=("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), limit_s=240),
    Part(
        name="example",
        command=(
            "examples/bert_large.py",
            "--steps",
            "8",
            "--batch-size",
            "32",
            "--seq-len",
            "128",
            "--json",
            "{json}",
        ),
        limit_s=90,
    ),
    Part(name="kernels", command=("benchmarks/kernels.py", "--json", "{json}"), limit_s=60),
    Part(name="bench_copy", command=("-m", "poolrt", "bench", "copy", "--quick"), limit_s=60),
    Part(name="one_card", command=("benchmarks/one_card.py", "--cuda", "--json", "{json}"), limit_s=60),
    Part(name="tensor_parallel", command=("benchmarks/tensor_parallel.py", "--cuda", "--json", "{json}"), limit_s=60),
    Part(name="allocator", command=("benchmarks/allocator.py", "--cuda", "--quick", "--json", "{json}"), limit_s=90),
    Part(name="copies", command=("benchmarks/copies.py", "--cuda", "--json", "{json}"), limit_s=60),
    Part(
        name="pooled_batch",
        command=("benchmarks/pooled_batch.py", "--cuda", "--cards", "1", "2", "4", "--json", "{json}"),
        limit_s=120,
    ),
)


@dataclass(kw_only=True)
class Outcome:
    """How one part ended, and what it measured."""

    name: str
    passed: bool
    seconds: float
    output_tail: str
    results: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Runs all parts; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    console = Console()
    if not torch.cuda.is_available():
        console.print("gpu-check needs a CUDA GPU, and torch finds none here; `make test` needs none", style="yellow")
        return NO_GPU
    outcomes: list[Outcome] = []
    end = time.perf_counter() + TOGETHER_S
    for part in PARTS:
        left_s = max(0.0, end - time.perf_counter())
        outcomes.append(run_part(replace(part, limit_s=min(part.limit_s, left_s)), console))
        parts = [asdict(outcome) for outcome in outcomes]
        write_json(options.json, "gpu_check", {"driver": _driver(), "parts": parts})
    console.print(_table(outcomes))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def run_part(part: Part, console: Console) -> Outcome:
    """Runs one command from the repository's root, within its limit."""
    console.print(f"[bold]{part.name}[/bold]: {' '.join(part.command)}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "results.json"
        command = [sys.executable, *(word.format(json=answer) for word in part.command)]
        passed, output = _run(command, part.limit_s)
        results = read_json(answer)
    console.print(output[-1500:], markup=False)
    seconds = time.perf_counter() - start
    return Outcome(name=part.name, passed=passed, seconds=seconds, output_tail=output[-4000:], results=results)


def _run(command: list[str], limit_s: float) -> tuple[bool, str]:
    with tempfile.TemporaryFile("w+") as log:
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=limit_s, check=False)
            passed, verdict = done.returncode == 0, f"ended with code {done.returncode}"
        except subprocess.TimeoutExpired:
            passed, verdict = False, f"reached its limit of {limit_s:.0f} s"
        log.seek(0)
        return passed, log.read() + verdict


def _driver() -> str:
    from poolrt._C import cuda_driver

    return str(cuda_driver().driver_version())


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("part", "verdict", "s", title=torch.cuda.get_device_name(0))
    for outcome in outcomes:
        table.add_row(outcome.name, "passed" if outcome.passed else "FAILED", f"{outcome.seconds:.1f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
