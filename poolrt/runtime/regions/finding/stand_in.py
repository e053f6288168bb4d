"""A small layer in place of a large one of torch's own classes, where what is asked does not depend on its size."""

from __future__ import annotations

import torch
from torch import nn

from poolrt.runtime.regions.replica import parameter_of, replicate

FEW = 16
"""outputs of a stand-in, for each card"""


def is_linear(module: nn.Module) -> bool:
    """A linear layer with a weight of its own: torch's, or GPT-2's Conv1D, whose weight is transposed."""
    linear = isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))
    return linear and has_weight(module)


def has_weight(module: nn.Module) -> bool:
    """Whether `weight` is a parameter of numbers, neither computed from others nor quantized."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.is_floating_point()


def linear_dim(module: nn.Module) -> int:
    """The dimension of the weight of a linear layer that is its output, of an embedding that is its rows."""
    return 0 if isinstance(module, (nn.Linear, nn.Embedding)) else 1


def with_fewer(module: nn.Module, count: int) -> nn.Module:
    """A copy of a linear layer with fewer outputs, or of an embedding with fewer rows; its weights are not set."""
    small, dim = replicate(module), linear_dim(module)
    weight = parameter_of(module, "weight")
    shape = list(weight.shape)
    shape[dim] = count
    small._parameters["weight"] = nn.Parameter(torch.empty(shape, dtype=weight.dtype), requires_grad=False)
    if small._parameters.get("bias") is not None:
        small._parameters["bias"] = nn.Parameter(torch.empty(count, dtype=weight.dtype), requires_grad=False)
    if isinstance(small, nn.Embedding):
        small.num_embeddings = count
        small.padding_idx = None if small.padding_idx is None else min(small.padding_idx, count - 1)
    else:
        small.__dict__["out_features" if isinstance(small, nn.Linear) else "nf"] = count
    return small
