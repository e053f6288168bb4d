"""How fast copies between cards are, against what their links allow.

    python benchmarks/copies.py --json benchmarks/results/copies.json      # virtual cards, some 2 minutes
    python benchmarks/copies.py --quick
    python benchmarks/copies.py --cuda                                     # one GPU: routes forced within it

Virtual cards: links of a set speed, so the ideal is known. n chunks through the bounce ring take n + 1 slots, each as
long as a chunk takes on the slower of both links:

    ideal of the HOST route = min(down, up) * n / (n + 1)

Behind work: two cards, one sleeping layer each, a link on which a copy takes as long as a layer. Copies that go on
while the cards work make it a third stage of the pipeline, m + 2 slots for m micro-batches; copies that the cards wait
for take 2 m + 1.

One GPU: HOST against the slower of pinned copies to and from the host, LOCAL against torch's own copy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measuring import Times, benchmark_parser, interleaved, median_ratio, write_json
from rich.console import Console
from rich.table import Table
from sleeping import BACKWARD_S_PER_ROW, FORWARD_S_PER_ROW, WIDTH, sleeping_model
from torch import Tensor

import poolrt
from poolrt.transfer.bounce import release, ring_between
from poolrt.transfer.copy import carry, copy_over
from poolrt.transfer.many import copy_many
from poolrt.transfer.ring import Copy
from poolrt.units import MIB, format_nbytes
from poolrt.virtual_cards.links import clear_links, set_link

SPEEDS = ((1e9, 1e9), (1e9, 0.5e9), (0.5e9, 1e9))
"""bytes per second of the links down to the host and up from it"""
SIZES = tuple(size * MIB for size in (1, 4, 16, 64, 256))
QUICK_SIZES = (1 * MIB, 16 * MIB)
SMALL_COUNT, SMALL_NBYTES = 1000, 4096
LINK_BYTES_PER_S, LINK_LATENCY_S = 2e9, 10e-6
"""of the peer link that the small tensors take"""


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables and writes the JSON."""
    options = _parse(arguments)
    sizes = QUICK_SIZES if options.quick else SIZES
    results: dict[str, Any] = {}
    if options.cuda:
        results = {"host_route": measure_host_on_gpu(sizes, options.rounds), "local": measure_local(sizes)}
        results["many_small"] = measure_many(("cuda:0", "cuda:0"), options.rounds)
    else:
        devices = [torch.device(card.device) for card in poolrt.virtual(cards=2, memory="2GiB").cards]
        results = {"host_route": measure_host_on_links(devices, sizes, options.rounds)}
        set_link(0, 1, bytes_per_s=LINK_BYTES_PER_S, latency_s=LINK_LATENCY_S)
        results["many_small"] = measure_many(devices, options.rounds)
        clear_links()
        results["behind_work"] = measure_behind_work(options.rounds)
    release()
    for table in _tables(results):
        Console().print(table)
    write_json(options.json, "copies", results)


def measure_host_on_links(devices: Sequence[torch.device], sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """The bounce ring between virtual cards, for each pair of speeds and each size."""
    rows = []
    for down, up in SPEEDS:
        for nbytes in sizes:
            source, target = _tensors(nbytes, devices)
            set_link(0, None, bytes_per_s=down)
            set_link(None, 1, bytes_per_s=up)
            seconds = interleaved({"HOST": partial(copy_over, "HOST", source, target)}, rounds)["HOST"]
            clear_links()
            assert torch.equal(source.cpu(), target.cpu())
            chunks = _chunks(nbytes, devices)
            ideal = min(down, up) * chunks / (chunks + 1)
            rows.append(_row(nbytes, chunks, seconds, ideal) | {"down_bytes_per_s": down, "up_bytes_per_s": up})
    return rows


def measure_host_on_gpu(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """The bounce ring within one GPU, beside pinned copies in one direction."""
    device = torch.device("cuda:0")
    rows = []
    for nbytes in sizes:
        source, target = _tensors(nbytes, (device, device))
        pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        contenders: dict[str, Callable[[], float | None]] = {
            "HOST": _timed(partial(copy_over, "HOST", source, target)),
            "down": _timed(partial(pinned.copy_, source, non_blocking=True)),
            "up": _timed(partial(target.copy_, pinned, non_blocking=True)),
        }
        times = interleaved(contenders, rounds, warmup=2)
        slower_s = [max(down, up) for down, up in zip(times["down"], times["up"], strict=True)]
        ideal = nbytes / statistics.median(slower_s)
        rows.append(_row(nbytes, _chunks(nbytes, (device, device)), times["HOST"], ideal))
    return rows


def measure_local(sizes: Sequence[int], rounds: int = 20, copies: int = 10) -> list[dict[str, Any]]:
    """Contiguous copies within one GPU: ours against torch's, several in a row so that launching is hidden."""
    device = torch.device("cuda:0")
    rows = []
    for nbytes in sizes:
        source, target = _tensors(nbytes, (device, device))

        def ours(s: Tensor = source, t: Tensor = target) -> None:
            for _ in range(copies):
                carry(s, t)

        def theirs(s: Tensor = source, t: Tensor = target) -> None:
            for _ in range(copies):
                t.copy_(s)

        times = interleaved({"poolrt": _timed(ours), "torch": _timed(theirs)}, rounds, warmup=3)
        rows.append(
            {
                "nbytes": nbytes,
                "measured_bytes_per_s": copies * nbytes / statistics.median(times["poolrt"]),
                "share_of_torch": median_ratio(times["torch"], times["poolrt"]),
                "seconds": times,
            }
        )
    return rows


def measure_many(devices: Sequence[str | torch.device], rounds: int) -> dict[str, Any]:
    """Many small tensors between two cards: one copy each, against all of them at once."""
    first, second = (torch.device(device) for device in devices)
    pairs = [_tensors(SMALL_NBYTES, (first, second)) for _ in range(SMALL_COUNT)]

    def one_each() -> None:
        for source, target in pairs:
            carry(source, target)

    times = interleaved({"one each": _timed(one_each), "together": _timed(partial(copy_many, pairs))}, rounds)
    return {
        "count": SMALL_COUNT,
        "nbytes": SMALL_NBYTES,
        "times_faster": median_ratio(times["one each"], times["together"]),
        "seconds": times,
    }


def measure_behind_work(rounds: int, micro_batches: int = 8, rows: int = 4) -> dict[str, Any]:
    """Forward and backward of two sleeping layers over a link that is as slow as they are."""
    topology = poolrt.virtual(cards=2, memory="64MiB")
    sample = torch.randn(rows * micro_batches, WIDTH)
    model = poolrt.shard(sleeping_model(2), topology=topology, sample=sample, micro_batches=micro_batches)
    set_link(0, 1, bytes_per_s=1e12, latency_s=rows * FORWARD_S_PER_ROW)
    set_link(1, 0, bytes_per_s=1e12, latency_s=rows * BACKWARD_S_PER_ROW)
    seconds = interleaved({"step": lambda: model(sample).sum().backward()}, rounds)["step"]
    clear_links()
    slot_s = rows * (FORWARD_S_PER_ROW + BACKWARD_S_PER_ROW)
    ideal_s = (micro_batches + 2) * slot_s
    return {
        "micro_batches": micro_batches,
        "ideal_s": ideal_s,
        "waited_for_s": (2 * micro_batches + 1) * slot_s,
        "share_of_ideal": ideal_s / statistics.median(seconds),
        "seconds": seconds,
    }


def _tensors(nbytes: int, devices: Sequence[torch.device]) -> tuple[Tensor, Tensor]:
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device="cpu").to(devices[0])
    return source, torch.zeros(nbytes, dtype=torch.uint8, device=devices[1])


def _chunks(nbytes: int, devices: Sequence[torch.device]) -> int:
    steps = ring_between(devices[0], devices[1]).steps(nbytes)
    return sum(isinstance(step, Copy) and step.side == "down" for step in steps)


def _timed(work: Callable[[], Any]) -> Callable[[], float]:
    """`work` until the cards have done it, in seconds."""

    def run() -> float:
        torch.accelerator.synchronize()
        start = time.perf_counter()
        work()
        torch.accelerator.synchronize()
        return time.perf_counter() - start

    return run


def _row(nbytes: int, chunks: int, seconds: list[float], ideal_bytes_per_s: float) -> dict[str, Any]:
    measured = nbytes / statistics.median(seconds)
    return {
        "nbytes": nbytes,
        "chunks": chunks,
        "ideal_bytes_per_s": ideal_bytes_per_s,
        "measured_bytes_per_s": measured,
        "share_of_ideal": measured / ideal_bytes_per_s,
        "seconds": seconds,
    }


def _tables(results: dict[str, Any]) -> list[Table]:
    host = Table("size", "chunks", "down", "up", "ideal GB/s", "measured GB/s", "share", title="HOST route")
    for row in results["host_route"]:
        speeds = [f"{row[key] / 1e9:.1f}" if key in row else "-" for key in ("down_bytes_per_s", "up_bytes_per_s")]
        figures = [f"{row[key] / 1e9:.3f}" for key in ("ideal_bytes_per_s", "measured_bytes_per_s")]
        host.add_row(
            format_nbytes(row["nbytes"]), str(row["chunks"]), *speeds, *figures, f"{row['share_of_ideal']:.3f}"
        )
    small = results["many_small"]
    many = Table("way", "s", title=f"{small['count']} tensors of {format_nbytes(small['nbytes'])}")
    times: Times = small["seconds"]
    for name, seconds in times.items():
        many.add_row(name, f"{statistics.median(seconds):.5f}")
    many.add_row("times faster together", f"{small['times_faster']:.1f}")
    tables = [host, many]
    if "behind_work" in results:
        tables.append(_behind_work(results["behind_work"]))
    if "local" in results:
        local = Table("size", "GB/s", "share of torch's copy", title="LOCAL route, contiguous")
        for row in results["local"]:
            figures = [f"{row['measured_bytes_per_s'] / 1e9:.1f}", f"{row['share_of_torch']:.3f}"]
            local.add_row(format_nbytes(row["nbytes"]), *figures)
        tables.insert(1, local)
    return tables


def _behind_work(found: dict[str, Any]) -> Table:
    table = Table("step", "s", title=f"Copies behind work, {found['micro_batches']} micro-batches")
    table.add_row("measured", f"{statistics.median(found['seconds']):.4f}")
    table.add_row("ideal", f"{found['ideal_s']:.4f}")
    table.add_row("if the cards waited for the copies", f"{found['waited_for_s']:.4f}")
    table.add_row("share of the ideal", f"{found['share_of_ideal']:.3f}")
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    return benchmark_parser(
        __doc__, quick="fewer sizes", cuda="the first GPU instead of virtual cards", rounds=5
    ).parse_args(arguments)


if __name__ == "__main__":
    main()
