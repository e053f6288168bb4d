"""Masked-language-model pretraining of BERT (Devlin et al. 2019) on real text, its layers spread over several cards.

    python examples/bert_large.py                               # BERT-large, 335 M parameters, two cards of 4 GiB
    python examples/bert_large.py --single-card                 # the same on one such card first: it runs out of memory
    python examples/bert_large.py --size base --cards 3 --card-memory 1GiB --text mine.txt
    python examples/bert_large.py --model bert-large-uncased    # continue from published weights

Two or more CUDA GPUs are used as they are; one is cut into logical cards; without any, the cards are virtual ones on
the CPU. `train` is an ordinary PyTorch loop: the one line that poolrt adds is `poolrt.shard`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from text_data import Batch, MaskedBatches, read_documents, train_tokenizer, windows_of_tokens
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

import poolrt

SIZES: dict[str, dict[str, Any]] = {
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256},
}
VOCABULARY = {"large": 30522, "base": 30522, "tiny": 4000}
"""rows of the embedding; bert-large-uncased has 30522, and so has this one, also when the text yields fewer pieces"""

console = Console()


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says, and prints the plan before and the report after."""
    options = parse_options(arguments)
    torch.manual_seed(options.seed)
    model, tokenizer = make_model(options)
    windows = windows_of_tokens(read_documents(options.text), tokenizer, options.seq_len)
    batches = MaskedBatches(windows, tokenizer, options.batch_size, options.seed)
    sample = next(iter(batches))
    topology = choose_topology(options)
    if options.single_card:
        try_one_card(copy.deepcopy(model), sample, topology, options)
        gc.collect()

    model = poolrt.shard(model, sample=sample, topology=topology, micro_batches=options.micro_batches)
    print(poolrt.report(model).plan.explain())
    losses, samples_per_s = train(model, batches, options)
    report = poolrt.report(model)
    print(report)
    if options.json:
        write_results(options, losses, samples_per_s, report)


def train(model: torch.nn.Module, batches: MaskedBatches, options: argparse.Namespace) -> tuple[list[float], float]:
    """The training loop. Returns every step's loss, and samples per second over all steps but the first."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    losses, seconds = [], []
    model.train()
    with progress_bar() as bar:
        task = bar.add_task("training", total=options.steps, loss=float("nan"), rate=0.0)
        for batch in itertools.islice(batches, options.steps):
            start = time.perf_counter()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
            rate = options.batch_size / seconds[-1]
            bar.update(task, advance=1, loss=losses[-1], rate=rate)
            bar.console.print(f"step {len(losses):3d}  loss {losses[-1]:.4f}  {rate:.2f} samples/s")
    steady = seconds[1:] or seconds
    return losses, options.batch_size * len(steady) / sum(steady)


def progress_bar() -> Progress:
    """A bar with the step, its loss and its speed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.2f} samples/s"),
        TimeElapsedColumn(),
        console=console,
    )


def make_model(options: argparse.Namespace) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """A BERT of the asked size with random weights and a tokenizer of the text's own, or both from `--model`."""
    if options.model:
        return AutoModelForMaskedLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    rows = VOCABULARY[options.size]
    config = BertConfig(
        **SIZES[options.size],
        vocab_size=rows,
        max_position_embeddings=max(512, options.seq_len),
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
    )
    return BertForMaskedLM(config), train_tokenizer(read_documents(options.text), rows)


def choose_topology(options: argparse.Namespace) -> Any:
    """The machine's GPUs if there are two or more, logical cards on a single one, virtual cards without any."""
    if torch.cuda.device_count() >= 2:
        return poolrt.discover()
    if torch.cuda.device_count() == 1:
        return poolrt.logical(device="cuda:0", cards=options.cards, memory=options.card_memory)
    return poolrt.virtual(cards=options.cards, memory=options.card_memory)


def try_one_card(model: torch.nn.Module, batch: Batch, topology: Any, options: argparse.Namespace) -> None:
    """Two plain PyTorch steps on the first card alone, and what it says when its memory is full."""
    card = topology.cards[0]
    console.print(f"first on one card, {card.name}: plain PyTorch, without poolrt")
    try:
        model.to(card.device)
        batch = {key: value.to(card.device) for key, value in batch.items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
        for _ in range(2):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    except torch.OutOfMemoryError as error:
        console.print(f"out of memory on one card: {error}", style="red", markup=False)
    else:
        console.print("this model fits one card; pooled cards take larger models and batches")


def write_results(options: argparse.Namespace, losses: list[float], samples_per_s: float, report: Any) -> None:
    """Writes arguments, losses, speed, and the report (the plan's keys beside what was measured) as JSON."""
    arguments = {key: value for key, value in vars(options).items() if key != "json"}
    body = {"arguments": arguments, "losses": losses, "samples_per_s": samples_per_s, "report": report.to_dict()}
    options.json.write_text(json.dumps(body, indent=2, default=str) + "\n")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large", help="335, 110 or 1 million parameters")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="published weights and their tokenizer instead")
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="text to train on")
    parser.add_argument("--cards", type=int, default=2, help="how many logical or virtual cards")
    parser.add_argument("--card-memory", default="4GiB", help="memory of each logical or virtual card")
    parser.add_argument("--batch-size", type=int, default=8, help="windows of text in one step")
    parser.add_argument("--seq-len", type=int, default=64, help="tokens in one window")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    parser.add_argument("--micro-batches", type=_count_or_auto, default="auto", help="parts of a batch, or auto")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="AdamW's learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="dropout probability")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order, masks and dropout")
    parser.add_argument("--single-card", action="store_true", help="try one card without poolrt first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    return parser.parse_args(arguments)


def _count_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    main()
