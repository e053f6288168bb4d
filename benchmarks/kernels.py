"""How close the copy kernels come to the plain copy of the same card, and what one launch saves over a thousand.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json       # one CUDA GPU, some 20 s
    python benchmarks/kernels.py --quick

Contenders run in turn, once per round, over the same memory, timed by the card's own events; a latch holds the stream
until all of a turn's launches are queued, so that the host's pace does not count. Bytes are those read and written. The
thousand small copies are timed by the host, since its pace is what they cost. Without a GPU it says so, and ends well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import benchmark_parser, interleaved, median_ratio, write_json
from rich.console import Console
from rich.table import Table

from poolrt.transfer import kernels
from poolrt.units import GIB, MIB

REPEATS = 5
"""launches of one turn"""
SMALL = 1000


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to move bytes on the card."""

    name: str
    run: Callable[[], object]
    nbytes: int
    """read and written by one run"""
    goal: float | None = None
    """the share of the plain copy's bytes per second that it should reach"""


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table and writes the JSON."""
    options = _parse(arguments)
    console = Console()
    reason = kernels.available("cuda:0")
    if reason is not None:
        console.print(f"the copy kernels cannot be measured here: {reason}", style="yellow")
        write_json(options.json, "kernels", {"measured": False, "reason": reason})
        return
    nbytes = 64 * MIB if options.quick else 512 * MIB
    rows = measure_bandwidth(nbytes, options.rounds)
    many = measure_many(options.rounds)
    console.print(_table(rows, many))
    write_json(options.json, "kernels", {"measured": True, "copies": rows, "many": many})


def measure_bandwidth(nbytes: int, rounds: int) -> list[dict[str, Any]]:
    """Bytes per second of every kernel, and its share of torch's plain copy of `nbytes` in the same rounds."""
    contenders = _contenders(nbytes)
    times = interleaved({one.name: _timed(one.run) for one in contenders}, rounds, warmup=2)
    plain = contenders[0]
    rows = []
    for one in contenders:
        share = median_ratio(times[plain.name], times[one.name]) * one.nbytes / plain.nbytes
        rows.append(
            {
                "name": one.name,
                "bytes_per_s": one.nbytes / statistics.median(times[one.name]),
                "share_of_plain": share,
                "goal": one.goal,
                "reached": None if one.goal is None else share >= one.goal,
                "seconds": times[one.name],
            }
        )
    return rows


def _contenders(nbytes: int) -> list[Contender]:
    """Torch's contiguous copy first: what the others are compared with."""
    count = nbytes // 4
    side = 32 * int((count // 1024) ** 0.5)
    source = torch.rand(count, device="cuda:0")
    target = torch.empty_like(source)
    halves = torch.empty(count, dtype=torch.bfloat16, device="cuda:0")
    wide = torch.rand(count // 1024, 2, 1024, device="cuda:0")
    square, turned = source[: side * side].view(side, side), target[: side * side].view(side, side)
    columns = wide[:, 1]
    rows = target[: columns.numel()].view(columns.shape)
    return [
        Contender(name="torch, contiguous", run=lambda: target.copy_(source), nbytes=2 * nbytes),
        Contender(name="contiguous", run=lambda: kernels.copy(source, target), nbytes=2 * nbytes, goal=0.97),
        Contender(name="strided: columns", run=lambda: kernels.copy(columns, rows), nbytes=2 * nbytes, goal=0.85),
        Contender(name="torch, columns", run=lambda: rows.copy_(columns), nbytes=2 * nbytes),
        Contender(name="float32 to bfloat16", run=lambda: kernels.copy(source, halves), nbytes=6 * count, goal=0.85),
        Contender(name="bfloat16 to float32", run=lambda: kernels.copy(halves, target), nbytes=6 * count, goal=0.85),
        Contender(name="torch, float32 to bfloat16", run=lambda: halves.copy_(source), nbytes=6 * count),
        Contender(name="sum of float32", run=lambda: kernels.add(source, target), nbytes=12 * count),
        Contender(name="transposed", run=lambda: kernels.copy(square.t(), turned), nbytes=8 * side * side),
        Contender(name="torch, transposed", run=lambda: turned.copy_(square.t()), nbytes=8 * side * side),
    ]


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one run by the card's clock, over several queued behind a latch."""

    def timed() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with kernels.Latch("cuda:0"):
            began.record()
            for _ in range(REPEATS):
                run()
            ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3 / REPEATS

    return timed


def measure_many(rounds: int) -> dict[str, Any]:
    """A thousand copies of 16 B to 16 KiB: how many times faster one launch is than one copy each."""
    sizes = [16 << (number % 11) for number in range(SMALL)]
    sources = [torch.zeros(nbytes, dtype=torch.uint8, device="cuda:0") for nbytes in sizes]
    targets = [torch.empty_like(source) for source in sources]
    pairs = list(zip(sources, targets, strict=True))

    def one_each() -> None:
        for source, target in pairs:
            target.copy_(source)

    contenders: dict[str, Callable[[], float | None]] = {
        "one launch": _until_done(lambda: kernels.copy_many(pairs)),
        "one copy each": _until_done(one_each),
        "torch._foreach_copy_": _until_done(lambda: torch._foreach_copy_(targets, sources)),
    }
    times = interleaved(contenders, rounds, warmup=2)
    return {
        "copies": SMALL,
        "nbytes": sum(sizes),
        "times_faster_than_one_each": median_ratio(times["one copy each"], times["one launch"]),
        "times_faster_than_foreach": median_ratio(times["torch._foreach_copy_"], times["one launch"]),
        "goal": 5.0,
        "seconds": times,
    }


def _until_done(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds by the host's clock until the card has done it."""

    def timed() -> float:
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began_s

    return timed


def _table(rows: list[dict[str, Any]], many: dict[str, Any]) -> Table:
    table = Table("copy", "GiB/s", "of torch's plain copy", "goal", title=torch.cuda.get_device_name(0))
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        table.add_row(row["name"], f"{row['bytes_per_s'] / GIB:.0f}", f"{row['share_of_plain']:.3f}", goal)
    faster = many["times_faster_than_one_each"]
    table.add_row(f"{many['copies']} small ones, one launch", "", f"{faster:.1f} x faster", f"{many['goal']:.0f} x")
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    return benchmark_parser(__doc__, quick="64 MiB instead of 512 MiB", rounds=15).parse_args(arguments)


if __name__ == "__main__":
    main()
