"""How much of real decoder models lies in pieces: configurations as published, made smaller in proportion.

    published             here
    L layers              2
    widths                divided by f
    vocabulary, places    divided by f and by L / 2: the same part of all parameters as in the published model

Norms are wider in proportion than in the published models, which makes what stays whole seem more, not less. What all
cards need whole (one key-value head of a multi-query model, which every card holds as in Megatron and vLLM) counts as
not split; of the published models it is less than one part in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from poolrt.runtime.regions.finding.find import find_regions

pytestmark = pytest.mark.usefixtures("one_thread")


def smaller(
    family: str, factor: int, *, layers: int, width: int, vocabulary: int, **options: Any
) -> Callable[[], nn.Module]:
    """A model of a published size, in proportion."""

    def make() -> nn.Module:
        sizes = {
            "vocab_size": vocabulary * 2 // (factor * layers), "hidden_size": width // factor, "num_hidden_layers": 2,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        if "intermediate_size" in options:
            sizes["intermediate_size"] = options["intermediate_size"] // factor
        config = getattr(transformers, f"{family}Config")(**{**options, **sizes})
        name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        return getattr(transformers, name)(config)

    return make


def llama(heads: int) -> Callable[[], nn.Module]:
    """Llama 2 7B, with so many key-value heads."""
    return smaller(
        "Llama", 32, layers=32, width=4096, vocabulary=32000, intermediate_size=11008, num_attention_heads=32,
        num_key_value_heads=heads,
    )  # fmt: skip


PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "gpt2 124M": smaller("GPT2", 8, layers=12, width=768, vocabulary=50257, n_head=12, n_positions=1024 // 48),
    "llama 7B, 1 key-value head": llama(1),
    "llama 7B, 2 key-value heads": llama(2),
    "llama 7B, 4 key-value heads": llama(4),
    "qwen2 7B": smaller(
        "Qwen2", 32, layers=28, width=3584, vocabulary=152064, intermediate_size=18944, num_attention_heads=28,
        num_key_value_heads=4,
    ),
    "qwen3 8B": smaller(
        "Qwen3", 32, layers=36, width=4096, vocabulary=151936, intermediate_size=12288, num_attention_heads=32,
        num_key_value_heads=8, head_dim=4,
    ),
    "phi3 mini": smaller(
        "Phi3", 24, layers=32, width=3072, vocabulary=32064, intermediate_size=8192, num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "mixtral 8x7B": smaller(
        "Mixtral", 64, layers=32, width=4096, vocabulary=32000, intermediate_size=14336, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, experts_implementation="eager",
    ),
    "gpt-neox 20B": smaller(
        "GPTNeoX", 48, layers=44, width=6144, vocabulary=50432, intermediate_size=24576, num_attention_heads=16,
    ),
    "falcon 7B": smaller(
        "Falcon", 32, layers=32, width=4544, vocabulary=65024, num_attention_heads=71, multi_query=True,
        new_decoder_architecture=False, parallel_attn=True, bias=False,
    ),
    "falcon 40B": smaller(
        "Falcon", 64, layers=60, width=8192, vocabulary=65024, num_attention_heads=32, num_kv_heads=2,
        new_decoder_architecture=True, bias=False,
    ),
    "falcon 1B": smaller(
        "Falcon", 16, layers=24, width=2048, vocabulary=50304, num_attention_heads=32, multi_query=False,
        new_decoder_architecture=False, parallel_attn=False, alibi=True, bias=True,
    ),
}  # fmt: skip


SHARED = ("llama 7B, 1 key-value head", "falcon 7B")
"""one key-value head for all: counted for fewer cards, too"""
CASES = [*((name, 4) for name in PUBLISHED), *((name, count) for name in SHARED for count in (2, 3))]


@pytest.mark.parametrize(("name", "count"), CASES)
def test_nearly_all_of_a_decoder_lies_in_pieces(name: str, count: int):
    model = PUBLISHED[name]()
    batch = {"input_ids": torch.randint(3, model.config.vocab_size, (1, 4)), "use_cache": False}
    plan = find_regions(model, lambda: model(**batch), [1.0] * count)
    assert plan.split_share >= 0.95, plan.explain()
