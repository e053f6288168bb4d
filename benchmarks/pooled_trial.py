"""One row of pooled_batch.py, in a process of its own: the largest batch that trains on this many cards.

python benchmarks/pooled_trial.py --model bert-small --cards 2 --card-memory 192MiB --seq-len 64 --json row.json
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from searching import largest_that_works
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import poolrt

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
    "bert-small": lambda: bert(256, 8, 4, vocabulary=8192),
    "bert-base": lambda: bert(768, 12, 12),
    "bert-large": lambda: bert(1024, 24, 16),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
}


class Trial:
    """Tries batches of one model on one set of cards, each from fresh weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._topology = make_topology(options)
        self._devices = sorted({card.device for card in self._topology.cards})
        self.samples_per_s: dict[int, float] = {}
        self.micro_batches: dict[int, int] = {}

    def trains(self, batch_size: int) -> bool:
        """Whether two steps with AdamW end; False when a card runs out of memory."""
        try:
            self._train(batch_size)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
        return True

    def _train(self, batch_size: int) -> None:
        torch.manual_seed(0)
        model = MODELS[self._options.model]()
        batch = self._batch(model, batch_size)
        model = self._place(model, batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for _ in range(2):
            start = time.perf_counter()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.samples_per_s[batch_size] = batch_size / (time.perf_counter() - start)
