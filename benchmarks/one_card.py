"""What `poolrt.shard` costs where nothing is shared: one card, against the plain model on the same card.

    python benchmarks/one_card.py --json benchmarks/results/one_card.json     # some 4 minutes on two cores
    python benchmarks/one_card.py --quick

A step is forward and backward of a BERT, no optimizer. Both run in turn; the overhead is the median over rounds of the
ratio of their times, less one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

from bert import BertShape, make_batch, make_bert
from cards import make_cards, synchronize
from measuring import benchmark_parser, interleaved, median_ratio, training_step, write_json
from rich.console import Console
from rich.table import Table
from torch import nn

import poolrt

FULL = BertShape()
QUICK = BertShape(layers=4, hidden=128, batch_size=8, sequence_length=64)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table and writes the JSON."""
    options = _parse(arguments)
    result = measure(QUICK if options.quick else FULL, options.rounds, cuda=options.cuda)
    Console().print(_table(result))
    write_json(options.json, "one_card", result)


def measure(shape: BertShape, rounds: int, *, cuda: bool) -> dict[str, Any]:
    """Seconds per step of both, and the overhead of the sharded one as a fraction of the plain one's step."""
    topology = make_cards(1, "8GiB", cuda=cuda)
    device = topology.cards[0].device
    model: nn.Module = make_bert(shape)
    batch = make_batch(shape)
    sharded = poolrt.shard(copy.deepcopy(model), sample=batch, topology=topology, micro_batches=1)
    there = {key: value.to(device) for key, value in batch.items()}
    contenders = {
        "plain": finished(training_step(model.to(device), [there]), topology),
        "sharded": finished(training_step(sharded, [there]), topology),
    }
    times = interleaved(contenders, rounds, warmup=2)
    return {
        "shape": vars(shape),
        "median_s": {name: statistics.median(values) for name, values in times.items()},
        "overhead": median_ratio(times["sharded"], times["plain"]) - 1,
        "seconds": times,
    }


def finished(step: Callable[[], None], topology: poolrt.Topology) -> Callable[[], None]:
    """`step`, ended only when the card has done it."""

    def run() -> None:
        step()
        synchronize(topology)

    return run


def _table(result: dict[str, Any]) -> Table:
    table = Table("contender", "s per step", title="One card, with and without poolrt.shard")
    for name, seconds in result["median_s"].items():
        table.add_row(name, f"{seconds:.4f}")
    table.add_row("overhead", f"{result['overhead']:+.2%}")
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    return benchmark_parser(
        __doc__, quick="a smaller BERT", cuda="a share of the first GPU instead of a virtual card", rounds=9
    ).parse_args(arguments)


if __name__ == "__main__":
    main()
