"""Forms known by torch's own classes: attention, embeddings, linear layers. What they claim is proven as well."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.dealing import NotSplittableError
from poolrt.runtime.regions.finding.granules import allot
from poolrt.runtime.regions.finding.stand_in import linear_dim
from poolrt.runtime.regions.plan import Forked, Rewrite, RowLinear, SplitAttention, SplitEmbedding
from poolrt.runtime.regions.replica import parameter_of


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
    makers = [columns_of(column, counts) for column in columns]
    return [*makers, RowLinear(module="", split=Split.from_counts(counts, dim))]


def large_linear_of(module: nn.Module, shares: Sequence[float]) -> Forked:
    """A linear layer by its outputs, which stay in parts until they are needed whole.

    Raises:
        ConfigurationError: if there are fewer outputs than cards.
    """
    size = parameter_of(module, "weight").shape[linear_dim(module)]
    return columns_of(module, [stop - start for start, stop in allot(size, (1,), shares)])


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


def columns_of(module: nn.Module, counts: Sequence[int]) -> Forked:
    """A linear layer by its outputs, so many on each card."""
    splits = {"weight": Split.from_counts(counts, linear_dim(module))}
    if module._parameters.get("bias") is not None:
        splits["bias"] = Split.from_counts(counts)
    return Forked(module="", splits=splits, outputs=("parts",))
