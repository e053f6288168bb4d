"""The largest batch that trains on one card, and on 2, 3 and 4 pooled cards of the same size.

    python benchmarks/pooled_batch.py --model bert-base --card-memory 3GiB --json results.json --png results.png
    python benchmarks/pooled_batch.py --quick          # a small BERT on cards of 192 MiB, some 2 minutes on two cores

Every figure is found by training: a batch counts when two whole steps with AdamW end (the second one has the
optimizer's state in memory all the time). From the prediction on, batches are tried in strides that double until the
answer changes, then the limit is bisected; torch.OutOfMemoryError is the only judge. One card runs plain PyTorch, and
nothing is spilled to the host. Each number of cards has a process of its own. Beside it stands the planner's
prediction, made before anything ran.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import benchmark_parser, write_json
from pooled_trial import MODELS
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

TRIAL = Path(__file__).with_name("pooled_trial.py")


def main(arguments: list[str] | None = None) -> None:
    """Measures every number of cards, prints a table, writes JSON and PNG."""
    options = _parse(arguments)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for cards in progress.track(options.cards, description=f"{options.model}, cards of {options.card_memory}"):
            rows.append(run_trial(cards, options))
    settings = {key: getattr(options, key) for key in ("model", "card_memory", "seq_len", "limit", "step", "cuda")}
    Console().print(_table(rows, options))
    write_json(options.json, "pooled_batch", {"settings": settings, "rows": rows})
    if options.png:
        draw(rows, options, options.png)


def run_trial(cards: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: the largest batches measured and predicted with this many cards, and samples per second there.

    Raises:
        RuntimeError: if the trial's process fails for another reason than its cards' memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        settings = {
            "--model": options.model,
            "--cards": cards,
            "--card-memory": options.card_memory,
            "--seq-len": options.seq_len,
            "--limit": options.limit,
            "--step": options.step,
            "--json": answer,
        }
        flags = [str(part) for pair in settings.items() for part in pair] + ["--cuda"] * options.cuda
        done = subprocess.run([sys.executable, str(TRIAL), *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the trial with {cards} cards ended with code {done.returncode}:\n{done.stderr}")
        row: dict[str, Any] = json.loads(answer.read_text())
    return row


def draw(rows: list[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """A picture of the rows: measured bars, predicted marks, and samples per second below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained")
    labels = [str(row["cards"]) for row in rows]
    above.bar(labels, [row["largest_batch"] for row in rows], color="#4c72b0", label="measured")
    above.plot(labels, [row["predicted_largest_batch"] for row in rows], "D", color="#c44e52", label="predicted")
    above.set_ylabel("largest batch")
    above.set_title(f"{options.model}, {options.seq_len} tokens, cards of {options.card_memory}")
    above.legend()
    below.bar(labels, [row["samples_per_s"] for row in rows], color="#55a868")
    below.set_ylabel("samples per second")
    below.set_xlabel("cards")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _table(rows: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    title = f"{options.model}, {options.seq_len} tokens, cards of {options.card_memory}"
    table = Table("cards", "largest batch", "times one card", "predicted", "micro-batches", "samples/s", title=title)
    single = next((row["largest_batch"] for row in rows if row["cards"] == 1), 0)
    for row in rows:
        times = f"{row['largest_batch'] / single:.2f}" if single else ""
        table.add_row(
            str(row["cards"]),
            str(row["largest_batch"]),
            times,
            str(row["predicted_largest_batch"]),
            str(row["micro_batches"]),
            f"{row['samples_per_s']:.2f}",
        )
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = benchmark_parser(
        __doc__, quick="a small BERT on small cards", cuda="shares of the first GPU instead of virtual cards"
    )
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--card-memory", default="3GiB")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens in one sample")
    parser.add_argument("--limit", type=int, default=4096, help="no batch above this is tried")
    parser.add_argument("--step", type=int, default=1, help="batches are tried in multiples of this")
    parser.add_argument("--png", type=Path, help="where to draw them")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.card_memory, options.seq_len = "bert-small", "192MiB", 64
    return options


if __name__ == "__main__":
    main()
