"""Forms that are known by torch's own classes: attention, embeddings, linear layers. What they claim is proven as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.dealing import NotSplittableError
from poolrt.runtime.regions.granules import allot
from poolrt.runtime.regions.plan import Forked, Rewrite, RowLinear, SplitAttention, SplitEmbedding
from poolrt.runtime.regions.probe import Call
from poolrt.runtime.regions.replica import parameter_of, replicate

_PROVEN_ROWS = 16
"""of each card's piece, in the copy that stands in for a large layer in its proof"""
_LARGE_NBYTES = 32 << 20
"""weights that are larger in fp64 are proven with such a copy"""


def linear_dim(module: nn.Module) -> int:
    """The dimension of a linear layer's weight that is its output: 0, for Conv1D 1."""
    return 0 if isinstance(module, nn.Linear) else 1


def attention_of(module: nn.MultiheadAttention, shares: Sequence[float]) -> SplitAttention:
    """Some heads on each card.

    Raises:
        NotSplittableError: for the seldom used forms: other widths of keys and values, added rows.
        ConfigurationError: if there are fewer heads than cards.
    """
    if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
        raise NotSplittableError("its keys and values have widths of their own, or rows that are added to them")
    ranges = allot(module.num_heads, (1,), shares)
    size, width = module.head_dim, module.embed_dim
    thirds = tuple(
        tuple((third * width + start * size, third * width + stop * size) for third in range(3))
        for start, stop in ranges
    )
    splits = {
        "in_proj_weight": Split(dim=0, pieces=thirds),
        "out_proj.weight": Split.from_counts([(stop - start) * size for start, stop in ranges], dim=1),
    }
    if module.in_proj_bias is not None:
        splits["in_proj_bias"] = Split(dim=0, pieces=thirds)
    return SplitAttention(module="", splits=splits, heads=tuple(stop - start for start, stop in ranges))


def inline_of(columns: Sequence[nn.Module], row: nn.Module, shares: Sequence[float]) -> list[Rewrite]:
    """Linear layers whose outputs, element by element, make the input of another one.

    Raises:
        NotSplittableError: if they do not fit together.
        ConfigurationError: if there are fewer units than cards.
    """
    dim = 1 - linear_dim(row)
    size = parameter_of(row, "weight").shape[dim]
    if any(parameter_of(column, "weight").shape[linear_dim(column)] != size for column in columns):
        raise NotSplittableError("the layers differ in width")
    counts = [stop - start for start, stop in allot(size, (1,), shares)]
    makers = [_columns(column, counts) for column in columns]
    return [*makers, RowLinear(module="", split=Split.from_counts(counts, dim))]


def large_linear_of(module: nn.Module, shares: Sequence[float]) -> Forked:
    """A linear layer by its outputs, which stay in parts until they are needed whole.

    Raises:
        ConfigurationError: if there are fewer outputs than cards.
    """
    size = parameter_of(module, "weight").shape[linear_dim(module)]
    return _columns(module, [stop - start for start, stop in allot(size, (1,), shares)])


def embedding_of(module: nn.Embedding, shares: Sequence[float]) -> SplitEmbedding:
    """An embedding by its rows.

    Raises:
        NotSplittableError: if looking up a row does more than that.
        ConfigurationError: if there are fewer rows than cards.
    """
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        raise NotSplittableError("it renormalizes rows, or has sparse or scaled gradients")
    counts = [stop - start for start, stop in allot(module.num_embeddings, (1,), shares)]
    return SplitEmbedding(module="", split=Split.from_counts(counts))


def _columns(module: nn.Module, counts: Sequence[int]) -> Forked:
    splits = {"weight": Split.from_counts(counts, linear_dim(module))}
    if module._parameters.get("bias") is not None:
        splits["bias"] = Split.from_counts(counts)
    return Forked(module="", splits=splits, outputs=("parts",))


def cut_down(module: nn.Module, call: Call, rewrite: Rewrite) -> tuple[nn.Module, Call, list[Rewrite]]:
    """A copy of a large layer with a few rows of each piece, a call of it, and its rewrite: what stands in for the

    layer in its proof, since a proof needs several copies of the weight.
    """
    weight = parameter_of(module, "weight")
    split = rewrite.split if isinstance(rewrite, SplitEmbedding) else rewrite.splits["weight"]  # type: ignore[union-attr]
    if weight.numel() * 8 <= _LARGE_NBYTES:
        return module, call, [rewrite]
    counts = [min(_PROVEN_ROWS, size) for size in split.piece_sizes]
    small = _with_rows(module, sum(counts))
    if isinstance(rewrite, SplitEmbedding):
        ids = torch.arange(sum(counts)).reshape(1, -1)
        return small, ((ids,), {}), [SplitEmbedding(module=rewrite.module, split=Split.from_counts(counts))]
    return small, call, [_columns(small, counts)]


def _with_rows(module: nn.Module, rows: int) -> nn.Module:
    """A copy of an embedding or linear layer with fewer rows."""
    small, dim = replicate(module), linear_dim(module) if not isinstance(module, nn.Embedding) else 0
    for name, parameter in module.named_parameters():
        cut = parameter.shape[dim] if parameter.dim() > 1 else parameter.shape[0]
        shape = [rows if size == cut and place == (dim if parameter.dim() > 1 else 0) else size
                 for place, size in enumerate(parameter.shape)]
        small._parameters[name] = nn.Parameter(torch.empty(shape, dtype=parameter.dtype))
    if isinstance(small, nn.Embedding):
        small.num_embeddings = rows
        small.padding_idx = None if small.padding_idx is None else min(small.padding_idx, rows - 1)
    elif isinstance(small, nn.Linear):
        small.out_features = rows
    else:
        small.__dict__["nf"] = rows
    return small
