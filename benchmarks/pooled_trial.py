"""One row of pooled_batch.py, in a process of its own: the largest batch that trains on this many cards.

python benchmarks/pooled_trial.py --model bert-small --cards 2 --card-memory 192MiB --seq-len 64 --json row.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cards import forget, make_cards, synchronize
from searching import largest_that_works
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import poolrt
from poolrt.errors import InfeasibleError
from poolrt.planning.largest import largest_batch
from poolrt.planning.limits import Limits
from poolrt.planning.planner import make_plan
from poolrt.planning.profile import Profile
from poolrt.runtime.measuring.measure import measure
from poolrt.runtime.state.layers import find_layers

PROBED_BATCH = 16
"""samples the planner sees before it predicts for any other number: with fewer, rounding would be a larger part"""

Batch = dict[str, torch.Tensor]


def bert(hidden: int, layers: int, heads: int, vocabulary: int = 30522) -> PreTrainedModel:
    """A BERT with a masked-language head."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    return BertForMaskedLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-tiny": lambda: bert(64, 4, 2, vocabulary=1000),
    "bert-small": lambda: bert(256, 8, 4, vocabulary=8192),
    "bert-base": lambda: bert(768, 12, 12),
    "bert-large": lambda: bert(1024, 24, 16),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
}


class Trial:
    """Tries batches of one model on one set of cards, each from fresh weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._topology = make_cards(options.cards, options.card_memory, cuda=options.cuda)
        self._largest_plan: poolrt.Plan | None = None
        self.samples_per_s: dict[int, float] = {}
        self.micro_batches: dict[int, int] = {}

    def predict(self) -> int:
        """The largest batch the planner expects to fit, from one probe of a small batch; nothing is trained."""
        one_card = self._options.cards == 1
        profile = self._profile()
        limits = Limits(output_card=0 if one_card else "host")
        found = largest_batch(
            profile,
            self._topology,
            limit=self._options.limit,
            micro_batches=1 if one_card else "auto",
            limits=limits,
        )
        if found and not one_card:
            self._largest_plan = make_plan(profile.scaled(found), self._topology, output_card="host")
        return found // self._options.step * self._options.step

    def _profile(self) -> Profile:
        """Measured on a card where the weights fit one: the host's dropout keeps larger masks."""
        model, batch = self._model(), self._batch(PROBED_BATCH)
        device = torch.device(self._topology.cards[0].device)
        try:
            nn.Module.to(model, device)
            batch = {key: value.to(device) for key, value in batch.items()}
            return profile_of(model, batch, self._options.cards)
        except torch.OutOfMemoryError:
            return profile_of(self._model(), self._batch(PROBED_BATCH), self._options.cards)
        finally:
            del model, batch
            forget(self._topology)

    def trains(self, batch_size: int) -> bool:
        """Whether two steps with AdamW end; False when a card runs out of memory."""
        try:
            self._train(batch_size)
        except torch.OutOfMemoryError:
            return False
        finally:
            forget(self._topology)
        return True

    def _train(self, batch_size: int) -> None:
        batch = self._batch(batch_size)
        model, batch = self._place(self._model(), batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for _ in range(2):
            start = time.perf_counter()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(self._topology)
            self.samples_per_s[batch_size] = batch_size / (time.perf_counter() - start)

    def _place(self, model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
        """One card runs plain PyTorch. A batch the planner refuses is tried with the plan of the largest it accepts."""
        if self._options.cards == 1:
            device = self._topology.cards[0].device
            self.micro_batches[len(batch["input_ids"])] = 1
            return model.to(device), {key: value.to(device) for key, value in batch.items()}
        try:
            pooled = poolrt.shard(model, sample=batch, topology=self._topology, spill="never")
        except InfeasibleError:
            if self._largest_plan is None:
                raise
            pooled = poolrt.shard(self._model(), sample=batch, topology=self._topology, plan=self._largest_plan)
        self.micro_batches[len(batch["input_ids"])] = poolrt.report(pooled).plan.micro_batches
        return pooled, batch

    def _model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        return MODELS[self._options.model]()

    def _batch(self, batch_size: int) -> Batch:
        tokens = torch.randint(1000, (batch_size, self._options.seq_len))
        return {"input_ids": tokens, "labels": tokens.clone()}


def profile_of(model: PreTrainedModel, batch: Batch, cards: int) -> Profile:
    """What the planner knows: the model's layers and calls, measured once with this batch where the model lies."""
    return measure(
        model,
        model.forward,
        find_layers(model, at_least=2 * cards),
        ((), dict(batch)),
        batch_size=len(batch["input_ids"]),
        gathered=False,
        threads=torch.get_num_threads(),
    ).profile


def main(arguments: list[str] | None = None) -> None:
    """Predicts, searches, and writes the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bert-small")
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--card-memory", default="192MiB")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--limit", type=int, default=4096)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    trial = Trial(options)
    predicted = trial.predict()
    largest = largest_that_works(trial.trains, options.limit, options.step, guess=predicted)
    row = {
        "cards": options.cards,
        "largest_batch": largest,
        "predicted_largest_batch": predicted,
        "micro_batches": trial.micro_batches.get(largest, 0),
        "samples_per_s": trial.samples_per_s.get(largest, 0.0),
        "all_samples_per_s": trial.samples_per_s,
    }
    options.json.write_text(json.dumps(row))


if __name__ == "__main__":
    main()
