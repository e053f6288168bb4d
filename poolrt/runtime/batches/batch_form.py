"""The form of a batch: what must stay the same for a verdict about splitting to hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from poolrt.errors import SampleError
from poolrt.runtime.batches.microbatch import Call, batch_size_of, is_split
from poolrt.runtime.state.trees import flatten


def call_of(sample: Any) -> Call:
    """The positional and keyword arguments that a sample stands for: a mapping, a tuple or list, or one value."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    if isinstance(sample, (tuple, list)):
        return tuple(sample), {}
    return (sample,), {}


def check_signature(model: nn.Module, call: Call) -> None:
    """See that the model's forward takes these arguments.

    Raises:
        SampleError: if it does not.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*call[0], **call[1])
    except TypeError as error:
        given = [*(type(a).__name__ for a in call[0]), *call[1]]
        raise SampleError(
            f"the sample does not fit {type(model).__name__}.forward{signature}: {error} (given: {', '.join(given)}). "
            "Give one batch as you would call the model: a dict for keyword arguments, a tuple for positional ones."
        ) from error


def form_of(model: nn.Module, call: Call, batch_dim: int) -> tuple[Any, ...]:
    """A key: what the model is given, which of its modules train, and whether gradients are wanted.

    Tensors count by place, rank, kind and whether they are split; flags and words by value; numbers by type.

    Args:
        model: the model.
        call: one batch.
        batch_dim: along which inputs are split.
    """
    tree, size = flatten(call), batch_size_of(call, batch_dim)
    tensors = tuple(
        (leaf.path, leaf.tensor.dim(), leaf.tensor.dtype, is_split(leaf.tensor, size, batch_dim))
        for leaf in tree.leaves
    )
    constants = tuple((path, _flag(value)) for path, value in tree.constants)
    training = tuple(module.training for module in model.modules())
    return tensors, constants, training, torch.is_grad_enabled()


def _flag(value: Any) -> Any:
    return value if isinstance(value, (bool, str, type(None))) else type(value)
