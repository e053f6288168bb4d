"""Small models of every family that regions must know, with a batch each; and what a test needs to run them split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.plan import RegionPlan
from poolrt.runtime.regions.running.forked import gathered, sliced
from poolrt.runtime.regions.running.install import Installed

VOCABULARY, WIDTH, HEADS = 96, 32, 4
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Specimen:
    """A model and its batch."""

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    tolerance: float = 1e-12
    share: float = 0.95
    """of the parameters that must lie in pieces"""

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """In fp64 and in training, without dropout."""
        torch.manual_seed(0)
        model = self.make().double().train()
        return model, {name: _double(value) for name, value in self.batch().items()}


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _text() -> dict[str, Any]:
    ids = torch.randint(3, VOCABULARY, (2, 7))
    labels = ids.clone()
    labels[0, :3] = -100
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _causal() -> dict[str, Any]:
    return {**_text(), "use_cache": False}


def _speech() -> dict[str, Any]:
    return {
        "input_features": torch.randn(2, 8, 24), "labels": torch.randint(3, VOCABULARY, (2, 6)), "use_cache": False
    }  # fmt: skip


def _image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([1, 2])}


def of(family: str, head: str = "ForCausalLM", **options: Any) -> Callable[[], nn.Module]:
    """A model of transformers by the name of its family."""

    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**{**_SIZES, **options})
        return getattr(transformers, f"{family}{head}")(config)

    return make


def _falcon(**options: Any) -> Callable[[], nn.Module]:
    return of("Falcon", num_kv_heads=options.pop("heads", 2), hidden_dropout=0.0, attention_dropout=0.0, **options)


def gpt2(**options: Any) -> nn.Module:
    """GPT-2 without dropout unless asked for."""
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **options}
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=8, **settings
    )
    return transformers.GPT2LMHeadModel(config)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=HEADS, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=12,
        max_target_positions=8, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


class Encoder(nn.Module):
    """torch's own encoder, and a loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, source: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.layers(source, src_key_padding_mask=padding)
        return {"loss": hidden.exp().mean(), "hidden": hidden}  # squares of what was normed add up to a constant


class Translator(nn.Module):
    """torch's own nn.Transformer, time first, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Transformer(WIDTH, HEADS, 1, 1, 48, dropout=0.0)

    def forward(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        mask = nn.Transformer.generate_square_subsequent_mask(len(target), dtype=target.dtype).to(target.device)
        hidden = self.core(source, target, tgt_mask=mask)
        return {"loss": hidden.exp().mean(), "hidden": hidden}  # squares of what was normed add up to a constant


def _padded() -> dict[str, Any]:
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    return {"source": torch.randn(2, 7, WIDTH), "padding": padding}


SPECIMENS: dict[str, Specimen] = {
    "bert": Specimen(
        of("Bert", "ForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=8),
        _text, share=0.9,
    ),
    "gpt2": Specimen(gpt2, _causal),
    "llama-1": Specimen(of("Llama", num_key_value_heads=1), _causal, share=0.94),
    "llama-2": Specimen(of("Llama", num_key_value_heads=2), _causal),
    "llama-4": Specimen(of("Llama", num_key_value_heads=4), _causal),
    "qwen2": Specimen(of("Qwen2", num_key_value_heads=2, tie_word_embeddings=True), _causal),
    "qwen3": Specimen(of("Qwen3", num_key_value_heads=2, head_dim=8), _causal, tolerance=1e-6),
    "phi3": Specimen(of("Phi3", num_key_value_heads=2, resid_pdrop=0.0), _causal),
    "t5": Specimen(_t5, _text),
    "vit": Specimen(
        of("ViT", "ForImageClassification", image_size=16, patch_size=8, num_labels=5, hidden_dropout_prob=0.0,
           attention_probs_dropout_prob=0.0),
        _image, share=0.6,
    ),
    "mixtral": Specimen(
        of("Mixtral", num_key_value_heads=2, num_local_experts=4, experts_implementation="eager"), _causal,
        tolerance=1e-6,
    ),
    "whisper": Specimen(_whisper, _speech, share=0.85),
    "gpt-neox": Specimen(of("GPTNeoX", use_parallel_residual=True), _causal),
    "falcon-new": Specimen(_falcon(new_decoder_architecture=True), _causal),
    "falcon-multi-query": Specimen(_falcon(multi_query=True, new_decoder_architecture=False), _causal),
    "falcon-alibi": Specimen(
        _falcon(heads=HEADS, multi_query=False, new_decoder_architecture=False, alibi=True, parallel_attn=False),
        _causal,
    ),
    "encoder": Specimen(Encoder, _padded),
    "transformer": Specimen(
        Translator, lambda: {"source": torch.randn(6, 2, WIDTH), "target": torch.randn(5, 2, WIDTH)}
    ),
}  # fmt: skip


class SlicedPieces:
    """Pieces that are plain leaves, and the gradients of whole parameters from theirs."""

    def __init__(self, model: nn.Module, plan: RegionPlan, devices: Sequence[torch.device]) -> None:
        parameters = dict(model.named_parameters())
        self._of = {
            id(parameters[name]): (
                split,
                [self._piece(parameters[name], split, card, d) for card, d in enumerate(devices)],
            )
            for name, split in plan.splits.items()
        }

    @staticmethod
    def _piece(parameter: Tensor, split: Any, card: int, device: torch.device) -> Tensor:
        piece = sliced(parameter.detach(), split, card).to(device, copy=True)
        return piece.requires_grad_(parameter.requires_grad)

    def __call__(self, parameter: Tensor) -> Sequence[Tensor]:
        return self._of[id(parameter)][1]

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """The whole gradient, on the host."""
        if id(parameter) not in self._of:
            return None if parameter.grad is None else parameter.grad.cpu()
        split, pieces = self._of[id(parameter)]
        if all(piece.grad is None for piece in pieces):
            return None
        found = [(torch.zeros_like(p) if p.grad is None else p.grad).cpu() for p in pieces]
        return gathered(found, split, parameter.detach().cpu())


def to_device(value: Any, device: torch.device) -> Any:
    """A batch's tensor on a device."""
    return value.to(device) if isinstance(value, Tensor) else value


@dataclass
class SplitModel:
    """A model that runs split, and its batch on the lead card."""

    model: nn.Module
    batch: dict[str, Any]
    plan: RegionPlan
    pieces: SlicedPieces
    installed: Installed


def split_model(
    model: nn.Module, batch: dict[str, Any], devices: Sequence[torch.device], shares: Sequence[float]
) -> SplitModel:
    """Find the regions of a model and run it split from now on; what is whole is on the lead card."""
    plan = find_regions(model, lambda: model(**batch), shares, devices)
    model.to(devices[0])
    pieces = SlicedPieces(model, plan, devices)
    batch = {name: to_device(value, devices[0]) for name, value in batch.items()}
    return SplitModel(model, batch, plan, pieces, Installed(model, plan, devices, pieces))
