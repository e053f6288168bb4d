"""What an allocation costs, and how much memory a training step makes an allocator hold: the pool beside others.

    python benchmarks/allocator.py --json benchmarks/results/allocator.json     # some 3 minutes on two cores
    python benchmarks/allocator.py --quick
    python benchmarks/allocator.py --cuda                                       # on the first GPU

Latency: a block of one size is allocated and freed, over and over. *Cached*: it stays with the allocator in between.
*Uncached*: everything cached is given back to the driver after each pair, and that is timed too.

Trace: the allocations and frees of one training step of a BERT, recorded on the CPU, are made again in their order.
*Written*: each block is written once, as a kernel would, so that its pages must be there.

Every contender has a process of its own; they take turns within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from allocator_contenders import ON_CPU
from allocator_gpu import ENVIRONMENT, ON_GPU
from allocator_program import measure_cpp
from allocator_trace import Trace
from allocator_worker import Worker
from measuring import benchmark_parser, interleaved, median_ratio, write_json
from rich.console import Console
from rich.table import Table

from poolrt.units import format_nbytes

KIB, MIB = 1 << 10, 1 << 20
SIZES = (512, 64 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 100 * MIB)
QUICK_SIZES = (512, 2 * MIB, 32 * MIB)
TABLE_WIDTH = 160
"""characters, where the output goes to a file"""


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the tables and writes the JSON."""
    options = _parse(arguments)
    load = os.getloadavg()[0]
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    cpp = summed_up(measure_cpp(options.sizes, rounds=options.rounds, pairs=options.pairs, cuda=options.cuda), "malloc")
    console.print(latency_table("From C++", cpp))
    with workers(options.contenders, cuda=options.cuda) as (here, missing):
        python = measure_latency(here, options.sizes, rounds=options.rounds, pairs=options.pairs)
    console.print(latency_table("From Python", python))
    shape, trace = record(quick=options.quick)
    with workers(options.contenders, cuda=options.cuda) as (here, _missing):
        replays = measure_replay(here, trace, rounds=options.rounds)
    console.print(replay_table(trace, replays))
    for name, reason in missing.items():
        console.print(f"not here: {name}: {reason}", markup=False)
    results = {
        "settings": _settings(options, shape, trace),
        "load_at_start": load,
        "cpp": cpp,
        "python": python,
        "replay": replays,
    }
    write_json(options.json, "allocator", {**results, "missing": missing})


@contextmanager
def workers(names: Sequence[str], *, cuda: bool) -> Iterator[tuple[list[Worker], dict[str, str]]]:
    """A process for each contender that this machine has; and why it has not the others."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(Worker(name, cuda=cuda, environment=ENVIRONMENT.get(name, {}) if cuda else {}))
            for name in names
        ]
        reasons = {worker.name: worker.missing() for worker in started}
        here = [worker for worker in started if reasons[worker.name] is None]
        yield here, {name: reason for name, reason in reasons.items() if reason is not None}


# ---- latency


def measure_latency(here: Sequence[Worker], sizes: Sequence[int], *, rounds: int, pairs: int) -> list[dict[str, Any]]:
    """Rows as those of `summed_up`, cached for every contender and uncached where that can be asked for."""
    turns = [(worker, True) for worker in here] + [(worker, False) for worker in here if worker.trims()]
    rows = []
    for nbytes in sizes:
        answers: dict[str, list[dict[str, Any]]] = {}
        contenders = {}
        for worker, cached in turns:
            name = worker.name if cached else f"{worker.name}, uncached"
            answers[name] = []
            count = pairs if cached else max(1, pairs // 100)
            contenders[name] = partial(_ask, worker, nbytes, count, cached, answers[name])
        interleaved(contenders, rounds, warmup=0)
        rows += [_row(name, nbytes, found) for name, found in answers.items()]
    return summed_up(rows, here[0].name)


def _ask(worker: Worker, nbytes: int, pairs: int, cached: bool, answers: list[dict[str, Any]]) -> float:
    answers.append(worker.time_pairs(nbytes, pairs, cached=cached))
    return float(answers[-1]["round_s"])


def _row(name: str, nbytes: int, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    singles = sorted(single for answer in answers for single in answer["single_s"])
    row: dict[str, Any] = {
        "contender": name,
        "nbytes": nbytes,
        "round_s": [answer["round_s"] for answer in answers],
        "p99_s": singles[int(0.99 * (len(singles) - 1))],
    }
    if "driver_calls" in answers[0]["counts"]:
        row["driver_calls"] = sum(answer["counts"]["driver_calls"] for answer in answers)
    return row


def summed_up(rows: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """The rows with `median_s`, and `times_reference`: the median ratio to the contender of that name and size."""
    rounds = {(row["contender"], row["nbytes"]): row["round_s"] for row in rows}
    return [
        row
        | {
            "median_s": statistics.median(row["round_s"]),
            "times_reference": median_ratio(row["round_s"], rounds[reference, row["nbytes"]]),
            "reference": reference,
        }
        for row in rows
    ]


def latency_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Microseconds by contender and size: median, p99, ratio."""
    sizes = sorted({row["nbytes"] for row in rows})
    by_key = {(row["contender"], row["nbytes"]): row for row in rows}
    table = Table("alloc + free, us", *(format_nbytes(nbytes) for nbytes in sizes), "driver calls", title=title)
    table.caption = f"median / p99 (times {rows[0]['reference']})"
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [by_key[name, nbytes] for nbytes in sizes]
        cells = [
            f"{row['median_s'] * 1e6:.2f} / {row['p99_s'] * 1e6:.2f} ({row['times_reference']:.2f})" for row in mine
        ]
        calls = [row["driver_calls"] for row in mine if "driver_calls" in row]
        table.add_row(name, *cells, str(sum(calls)) if calls else "")
    return table


# ---- the trace


def record(*, quick: bool) -> tuple[dict[str, int], Trace]:
    """The sizes of the model, and its step."""
    import allocator_record  # here, so that the contenders' processes, which import this file, need no transformers

    shape = allocator_record.QUICK if quick else allocator_record.FULL
    return vars(shape), allocator_record.record_step(shape)


def measure_replay(here: Sequence[Worker], trace: Trace, *, rounds: int) -> list[dict[str, Any]]:
    """What the recorded step costs each contender: memory, and seconds, first and warm, as it is and written."""
    rows = {}
    for worker in here:
        worker.begin(trace)
        first = worker.replay(written=True)
        memory = worker.observe()
        rows[worker.name] = {"contender": worker.name, **memory, "first": first, "second": worker.replay(written=True)}
    for written in (False, True):
        runs: dict[str, Callable[[], float]] = {
            worker.name: partial(_replay_seconds, worker, written=written) for worker in here
        }
        times = interleaved(runs, rounds)
        kind = "written" if written else "bookkeeping"
        for name, seconds in times.items():
            rows[name][f"{kind}_round_s"] = seconds
            rows[name][f"{kind}_s"] = statistics.median(seconds)
            rows[name][f"{kind}_times_reference"] = median_ratio(seconds, times[here[0].name])
    return list(rows.values())


def _replay_seconds(worker: Worker, *, written: bool) -> float:
    return float(worker.replay(written=written)["seconds"])


def replay_table(trace: Trace, rows: Sequence[dict[str, Any]]) -> Table:
    """One row for each contender."""
    peak = format_nbytes(trace.peak_nbytes)
    title = f"One training step: {trace.blocks} blocks, at most {peak} live"
    heads = ("held", "resident", "unused at the peak", "first, ms", "warm, ms", "not written, ms", "misses, calls")
    table = Table("contender", *heads, title=title)
    table.caption = f"held and resident: at most; (times {rows[0]['contender']}); misses and driver calls when warm"
    for row in rows:
        held, counts = row["peak_held_nbytes"], row["second"]["counts"]
        table.add_row(
            row["contender"],
            "" if held is None else format_nbytes(held),
            format_nbytes(row["peak_resident_nbytes"]),
            f"{row['fragmentation']:.1%}",
            f"{row['first']['seconds'] * 1e3:.1f}",
            f"{row['written_s'] * 1e3:.1f} ({row['written_times_reference']:.2f})",
            f"{row['bookkeeping_s'] * 1e3:.2f} ({row['bookkeeping_times_reference']:.2f})",
            f"{counts['misses']}, {counts['driver_calls']}" if counts else "",
        )
    return table


# ---- the command line


def _settings(options: argparse.Namespace, shape: dict[str, int], trace: Trace) -> dict[str, Any]:
    return {
        "rounds": options.rounds,
        "pairs": options.pairs,
        "cuda": options.cuda,
        "model": shape,
        "trace_blocks": trace.blocks,
        "trace_standing_nbytes": sum(trace.standing),
        "trace_peak_nbytes": trace.peak_nbytes,
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="fewer sizes, rounds and pairs; a smaller BERT", cuda="on the first GPU")
    parser.add_argument("--contenders", nargs="+", help="only these; the first is what the others are compared with")
    parser.add_argument("--sizes", type=int, nargs="+", help="bytes of the blocks")
    parser.add_argument("--rounds", type=int, help="measured rounds")
    parser.add_argument("--pairs", type=int, help="of an allocation and its free in a round")
    options = parser.parse_args(arguments)
    openers = ON_GPU if options.cuda else ON_CPU
    options.contenders = options.contenders or list(openers)
    if unknown := sorted(set(options.contenders) - set(openers)):
        parser.error(f"no contenders {unknown}; there are {list(openers)}")
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    options.rounds = options.rounds or (5 if options.quick else 21)
    options.pairs = options.pairs or (500 if options.quick else 2000)
    return options


if __name__ == "__main__":
    main()
