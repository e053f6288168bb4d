"""Do the cards work at the same time? Schedule efficiency, and time per step against the other ways to do it.

    python benchmarks/overlap.py --json benchmarks/results/overlap.json     # some 15 minutes on two cores
    python benchmarks/overlap.py --quick                                    # some 2 minutes: a smaller BERT

Part 1 uses layers that sleep: the speed-up over one card after another, as a share of the ideal m p / (m + p - 1).

Part 2 uses a BERT on two virtual cards of one core each. A step is forward and backward, no optimizer. All contenders
run once per round; every figure is the median over rounds, every comparison the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from bert import BertShape, make_batch, make_bert
from measuring import Times, benchmark_parser, interleaved, median_ratio, training_step, write_json
from rich.console import Console
from rich.table import Table
from sleeping import WIDTH, ideal_speedup, sleeping_model
from torch import nn
from torch_pipelining import SCHEDULES, TorchPipeline
from two_threads import TwoThreads

import poolrt

FULL = BertShape()
QUICK = BertShape(layers=4, hidden=128, batch_size=8, sequence_length=64)
ROWS = 16


def main(arguments: list[str] | None = None) -> None:
    """Runs both parts, prints two tables and writes the JSON."""
    options = _parse(arguments)
    console = Console()
    efficiency: list[dict[str, Any]] = []
    bert: dict[str, Any] = {}
    if not options.only_bert:
        efficiency = measure_efficiency(options.cards, options.micro_batches, options.rounds)
        console.print(_efficiency_table(efficiency))
    if not options.only_schedule:
        shape = QUICK if options.quick else FULL
        bert = measure_bert(shape, options.bert_micro_batches, options.rounds, options.rivals)
        console.print(_bert_table(bert))
    write_json(options.json, "overlap", {"schedule_efficiency": efficiency, "bert": bert})


def measure_efficiency(cards: list[int], micro_batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """One row per number of cards and micro-batches: measured speed-ups and their share of the ideal."""
    rows = []
    for card_count in cards:
        topology = poolrt.virtual(cards=card_count, memory="64MiB")
        sample = torch.randn(ROWS, WIDTH)
        model = sleeping_model()
        serial = poolrt.shard(copy.deepcopy(model), sample=sample, topology=topology, micro_batches=1)
        for count in micro_batches:
            pooled = poolrt.shard(copy.deepcopy(model), sample=sample, topology=topology, micro_batches=count)
            rows.append(_efficiency(pooled, serial, sample, card_count, count, rounds))
    return rows


def _efficiency(
    pooled: nn.Module, serial: nn.Module, sample: torch.Tensor, cards: int, micro_batches: int, rounds: int
) -> dict[str, Any]:
    forward_s: Times = {"pooled": [], "serial": []}

    def step(name: str, model: nn.Module, parts: int) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            outputs = [model(rows) for rows in sample.chunk(parts)]
            forward_s[name].append(time.perf_counter() - start)
            for output in outputs:
                output.sum().backward()

        return run

    total_s = interleaved(
        {"pooled": step("pooled", pooled, 1), "serial": step("serial", serial, micro_batches)}, rounds
    )
    ideal = ideal_speedup(cards, micro_batches)
    forward = median_ratio(forward_s["serial"][1:], forward_s["pooled"][1:])
    total = median_ratio(total_s["serial"], total_s["pooled"])
    return {
        "cards": cards,
        "micro_batches": micro_batches,
        "ideal_speedup": ideal,
        "forward_speedup": forward,
        "forward_efficiency": forward / ideal,
        "step_speedup": total,
        "step_efficiency": total / ideal,
    }


def measure_bert(
    shape: BertShape, micro_batches: list[int], rounds: int, rivals: Sequence[str] = ("",)
) -> dict[str, Any]:
    """Seconds per step of poolrt and the rivals, and its ratios to each, on two cards of one core."""
    topology = poolrt.virtual(cards=2, memory="8GiB")  # room for what all the contenders' models keep to themselves
    batch, model = make_batch(shape), make_bert(shape)
    plan = poolrt.plan(model, sample=batch, topology=topology, micro_batches=micro_batches[0])
    first_layers = sum(".layer." in f".{name}" and name.split(".")[-1].isdigit() for name in plan.cards[0].layers)
    with TorchPipeline(shape, first_layers) as gloo:
        contenders = _contenders(model, shape, batch, topology, micro_batches)
        contenders |= _ceiling(TwoThreads(shape, first_layers), micro_batches)
        contenders |= _gloo(gloo, micro_batches)
        chosen = [name for name in contenders if name.startswith(("poolrt", *rivals))]
        side_by_side = sorted(chosen, key=lambda name: name.rpartition("m=")[2])  # who is compared runs close together
        times = interleaved({name: contenders[name] for name in side_by_side}, rounds)
    return {
        "shape": vars(shape),
        "first_card_encoder_layers": first_layers,
        "median_s": {name: statistics.median(values) for name, values in times.items()},
        "seconds": times,
        "comparisons": [comparison for count in micro_batches for comparison in _compare(times, count)],
    }


def _contenders(
    model: nn.Module, shape: BertShape, batch: dict[str, torch.Tensor], topology: Any, micro_batches: list[int]
) -> dict[str, Callable[[], float | None]]:
    def shard(count: int, sample: dict[str, torch.Tensor]) -> nn.Module:
        return poolrt.shard(copy.deepcopy(model), sample=sample, topology=topology, micro_batches=count)

    found: dict[str, Callable[[], float | None]] = {}
    for count in micro_batches:
        found[f"poolrt m={count}"] = training_step(shard(count, batch), [batch])
        found[f"one after another m={count}"] = training_step(shard(1, batch), _split(batch, count))
    plain = copy.deepcopy(model)
    for threads in (1, 2):
        found[f"plain torch, {threads} core{'s' * (threads > 1)}"] = _with_threads(
            threads, training_step(plain, [batch])
        )
    return found


def _split(batch: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    chunks = {key: value.chunk(count) for key, value in batch.items()}
    return [{key: value[part] for key, value in chunks.items()} for part in range(count)]


def _with_threads(threads: int, run: Callable[[], None]) -> Callable[[], None]:
    def limited() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            run()
        finally:
            torch.set_num_threads(before)

    return limited


def _ceiling(threads: TwoThreads, micro_batches: list[int]) -> dict[str, Callable[[], float | None]]:
    return {f"two threads m={count}": partial(threads.step, count) for count in micro_batches}


def _gloo(pipeline: TorchPipeline, micro_batches: list[int]) -> dict[str, Callable[[], float | None]]:
    return {
        f"torch {schedule} m={count}": partial(pipeline.step, schedule, count)
        for schedule in SCHEDULES
        for count in micro_batches
    }


def _compare(times: Times, count: int) -> list[dict[str, Any]]:
    """How many times faster poolrt is than each contender with as many micro-batches, and the share of the ceiling."""
    ours = times[f"poolrt m={count}"]
    rivals = [name for name in times if name.endswith(f"m={count}") or name.startswith("plain")]
    rows = [
        {"micro_batches": count, "contender": name, "times_faster": median_ratio(times[name], ours)}
        for name in rivals
        if name != f"poolrt m={count}"
    ]
    if f"two threads m={count}" not in times:
        return rows
    ceiling = median_ratio(times[f"two threads m={count}"], ours)
    return [
        *rows,
        {
            "micro_batches": count,
            "contender": "two threads and a perfect pipeline's waiting",
            "times_faster": ceiling * (count + 1) / count,
        },
    ]


def _efficiency_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "cards", "micro-batches", "ideal", "forward", "of ideal", "step", "of ideal", title="Layers that sleep"
    )
    for row in rows:
        figures = [row[key] for key in ("ideal_speedup", "forward_speedup", "forward_efficiency", "step_speedup")]
        figures.append(row["step_efficiency"])
        table.add_row(str(row["cards"]), str(row["micro_batches"]), *(f"{figure:.3f}" for figure in figures))
    return table


def _bert_table(bert: dict[str, Any]) -> Table:
    table = Table(
        "contender", "micro-batches", "s per step", "poolrt is faster by", title="BERT on two cards of one core"
    )
    for name, seconds in bert["median_s"].items():
        if name.startswith("poolrt"):
            table.add_row(name, "", f"{seconds:.3f}", "")
    for row in bert["comparisons"]:
        seconds = bert["median_s"].get(row["contender"])
        shown = "" if seconds is None else f"{seconds:.3f}"
        table.add_row(row["contender"], str(row["micro_batches"]), shown, f"{row['times_faster']:.3f}")
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="a smaller BERT", rounds=5)
    parser.add_argument("--only-bert", action="store_true", help="only the BERT")
    parser.add_argument("--rivals", nargs="+", default=[""], help="for BERT: those whose names begin so")
    parser.add_argument("--only-schedule", action="store_true", help="only the layers that sleep")
    parser.add_argument("--cards", type=int, nargs="+", default=[2, 4], help="cards for the layers that sleep")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[2, 4, 8], help="for the layers that sleep")
    parser.add_argument("--bert-micro-batches", type=int, nargs="+", default=[4, 8], help="for BERT")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
