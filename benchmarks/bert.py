"""The BERT that the benchmarks time, whole and cut by hand into two stages with the same modules and the same loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

VOCABULARY = 8192


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """Sizes of the timed model and of one batch."""

    layers: int = 12
    hidden: int = 512
    batch_size: int = 16
    sequence_length: int = 128


def make_bert(shape: BertShape, seed: int = 0) -> BertForMaskedLM:
    """A masked-language model without dropout.

    Its output layer is not tied to the embedding: stages in two processes could not share it.
    """
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        intermediate_size=4 * shape.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tie_word_embeddings=False,
    )
    return BertForMaskedLM(config)


def make_batch(shape: BertShape, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random tokens and labels, int64 of shape (batch, length); every position has a label."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch_size, shape.sequence_length)
    tokens, labels = (torch.randint(VOCABULARY, size, generator=generator) for _ in range(2))
    return {"input_ids": tokens, "labels": labels}


class FirstStage(nn.Module):
    """Embeddings and the first encoder layers: token ids to hidden states of shape (batch, length, hidden)."""

    def __init__(self, model: BertForMaskedLM, layers: int) -> None:
        super().__init__()
        self.embeddings = model.bert.embeddings
        self.layers = model.bert.encoder.layer[:layers]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The hidden states after this stage's last layer."""
        return _through(self.layers, self.embeddings(input_ids=input_ids))


class LastStage(nn.Module):
    """The other encoder layers and the head: hidden states to logits of shape (batch, length, vocabulary)."""

    def __init__(self, model: BertForMaskedLM, layers: int) -> None:
        super().__init__()
        self.layers = model.bert.encoder.layer[layers:]
        self.head = model.cls

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.head(_through(self.layers, hidden))


def _through(layers: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    for layer in layers.children():
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of all positions, as the whole model computes it."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
