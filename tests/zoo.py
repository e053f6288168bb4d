"""Small models of every kind a user brings, each with a batch: for comparing a pooled run with an unsharded one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, BATCH, LENGTH = 99, 32, 6, 12
IGNORED = -100


@dataclass(frozen=True)
class Specimen:
    """A model, a batch for it, and what poolrt is expected to make of it."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    stays_whole: bool = False
    """splitting its batch would change the result, so poolrt must not"""
    options: tuple[tuple[str, Any], ...] = ()
    """further arguments for shard"""
    upcasts: bool = False
    """computes a part in fp32 whatever its dtype"""

    def build(self, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
        """The model in training mode, always with the same weights, and its batch."""
        torch.manual_seed(0)
        model = self.make().to(dtype).train()
        torch.manual_seed(1)
        return model, {name: _cast(value, dtype) for name, value in self.batch().items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- batches


def _ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, LENGTH))


def _ragged(labels: Tensor) -> Tensor:
    """Another number of ignored labels in every row, so that a mean of means is wrong."""
    labels = labels.clone()
    for row in range(len(labels)):
        labels[row, : 1 + row] = IGNORED
    return labels


def _text_batch() -> dict[str, Any]:
    ids, mask = _ids(), torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": _ragged(ids)}


def _speech_batch() -> dict[str, Any]:
    return {"input_features": torch.randn(BATCH, 8, 40), "labels": _ragged(_ids())}


def _image_batch(side: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(BATCH, 3, side, side), "labels": torch.randint(0, 5, (BATCH,))}


# ---- transformers


def bert(layers: int = 4, **options: Any) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **options}
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64,
        **settings,
    )  # fmt: skip
    return BertForMaskedLM(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=3, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=16,
        patch_size=4, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def mixtral(**options: Any) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, num_local_experts=4, experts_implementation="eager", **options,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20,
        max_target_positions=20, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def albert() -> nn.Module:
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return AlbertForMaskedLM(config)


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=5)
    return ResNetForImageClassification(config)


# ---- written by hand


class Perceptron(nn.Module):
    """A plain chain of linear layers; the loss is the user's."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [16, 32, 24, 32, 8]
        self.layers = nn.Sequential(*(part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SequenceFirst(nn.Module):
    """nn.Transformer in its default layout: time first, batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.core(source, target)


class Tied(nn.Module):
    """Input embedding and output weights are one parameter, at both ends of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits = self.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return {"loss": loss, "logits": logits}


def _tied_batch() -> dict[str, Any]:
    ids = _ids()
    return {"input_ids": ids, "labels": _ragged(ids)}


ZOO = (
    Specimen("bert", bert, _text_batch),
    Specimen("gpt2", gpt2, _text_batch),
    Specimen("llama", llama, _text_batch, upcasts=True),
    Specimen("t5", t5, _text_batch, upcasts=True),
    Specimen("vit", vit, _image_batch(16)),
    Specimen("mixtral", mixtral, _text_batch, upcasts=True),
    Specimen("whisper", whisper, _speech_batch),
    Specimen("albert", albert, _text_batch),
    Specimen("resnet-batchnorm", resnet, _image_batch(32), stays_whole=True),
    Specimen("perceptron", Perceptron, lambda: {"x": torch.randn(BATCH, 16)}),
    Specimen(
        "transformer-sequence-first",
        SequenceFirst,
        lambda: {"source": torch.randn(LENGTH, BATCH, 16), "target": torch.randn(LENGTH, BATCH, 16)},
        options=(("batch_dim", 1),),
    ),
    Specimen("tied", Tied, _tied_batch),
)
"""the models that every change is checked with"""


def loss_of(output: Any) -> Tensor:
    """The model's own loss, or one that any user could write on its first output."""
    if isinstance(output, Tensor):
        return output.pow(2).mean()
    return output["loss"]
