"""Dropout switched off for a while, all else as in training: BatchNorm still takes the batch's statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_DROPOUTS: set[Callable[..., Any]] = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.feature_dropout, torch.feature_dropout_, torch.alpha_dropout,
}  # fmt: skip
_ATTENTION_DROPOUT_POSITION = 4  # of scaled_dot_product_attention(query, key, value, attn_mask, dropout_p)


class NoDropout(TorchFunctionMode):
    """Every dropout returns its input; attention drops nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` without dropout."""
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > _ATTENTION_DROPOUT_POSITION:
                args = (*args[:_ATTENTION_DROPOUT_POSITION], 0.0, *args[_ATTENTION_DROPOUT_POSITION + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """`model` without dropout, also where it is inside a fused operation."""
    fused = [module for module in model.modules() if isinstance(module, (nn.RNNBase, nn.MultiheadAttention))]
    rates = [module.dropout for module in fused]
    for module in fused:
        module.dropout = 0.0
    try:
        with NoDropout():
            yield
    finally:
        for module, rate in zip(fused, rates, strict=True):
            module.dropout = rate
