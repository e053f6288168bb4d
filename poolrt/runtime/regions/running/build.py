"""From a rewrite, which is a value, to the forward that does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from poolrt.runtime.regions.plan import Forked, Rewrite, RowLinear, SplitEmbedding
from poolrt.runtime.regions.running.forked import ForkedModule
from poolrt.runtime.regions.running.row_linear import RowSplitLinear
from poolrt.runtime.regions.running.split_attention import HeadSplitAttention
from poolrt.runtime.regions.running.split_embedding import RowSplitEmbedding
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic

Pieces = Callable[[Tensor], Sequence[Tensor]]


SplitForward = ForkedModule | RowSplitLinear | RowSplitEmbedding | HeadSplitAttention
"""callable as the module's forward; `slots()` says where it reads its pieces"""


def split_forward(
    module: nn.Module,
    rewrite: Rewrite,
    devices: Sequence[torch.device],
    pieces: Pieces,
    traffic: Traffic = UNCOUNTED,
) -> SplitForward:
    """The forward that computes what `module` does, split over `devices`; the first of them is the lead card.

    Args:
        module: the module the rewrite names.
        rewrite: how it is split.
        devices: one per card.
        pieces: the tensors of a parameter, one per card and on its device.
        traffic: where copies between the cards count.
    """
    if isinstance(rewrite, Forked):
        return ForkedModule(module, rewrite, devices, pieces, traffic)
    if isinstance(rewrite, RowLinear):
        return RowSplitLinear(module, rewrite, devices, pieces, traffic)
    if isinstance(rewrite, SplitEmbedding):
        return RowSplitEmbedding(cast(nn.Embedding, module), rewrite, devices, pieces, traffic)
    return HeadSplitAttention(cast(nn.MultiheadAttention, module), rewrite, devices, pieces, traffic)
