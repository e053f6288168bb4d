"""Where a row weight may be cut, and who gets which part."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from poolrt.errors import ConfigurationError
from poolrt.runtime.regions.finding.granules import allot, levels
from poolrt.runtime.regions.finding.needs import Needs, RowWeight
from poolrt.runtime.regions.finding.probe import RegionProbe, evaluated


def attention_levels(heads, key_value_heads):
    """Of a Llama attention whose heads have 4 entries."""
    config = transformers.LlamaConfig(
        hidden_size=4 * heads, num_attention_heads=heads, num_key_value_heads=key_value_heads, head_dim=4
    )
    module = transformers.models.llama.modeling_llama.LlamaAttention(config, 0)
    angles = torch.randn(1, 5, 4)
    call = (
        (torch.randn(1, 5, 4 * heads),),
        {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None},
    )
    with evaluated(module):
        return levels(Needs(RegionProbe(module, call), RowWeight("o_proj.weight", 1)))


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "expected"),
    [(4, 4, (1, 4)), (4, 2, (1, 4, 8)), (6, 2, (1, 4, 12)), (4, 1, (1, 4))],
)
def test_heads_and_groups_of_heads_are_levels(heads, key_value_heads, expected):
    """
    columns        |  head 0 |  head 1 |  head 2 |  head 3 |      two heads share keys and values
    levels    1    <    head    <    group
    """
    assert attention_levels(heads, key_value_heads) == expected


def test_hidden_units_are_cut_anywhere():
    module = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 3))
    probe = RegionProbe(module, ((torch.randn(5, 3),), {}))
    assert levels(Needs(probe, RowWeight("2.weight", 1))) == (1,)


@pytest.mark.parametrize(
    ("size", "granules", "shares", "sizes"),
    [
        (16, (1, 4), [1, 1], (8, 8)),
        (16, (1, 4), [1, 1, 1], (8, 4, 4)),
        (16, (1, 4), [3, 1], (12, 4)),
        (16, (1, 4, 8), [1, 1], (8, 8)),  # by groups
        (16, (1, 4, 8), [3, 1], (8, 8)),  # a group is not cut where there are enough
        (16, (1, 4, 8), [1, 1, 1, 1], (4, 4, 4, 4)),  # two cards share a group
        (16, (1, 4, 8), [2, 1, 1], (8, 4, 4)),
        (16, (1, 4, 8), [1, 1, 2], (4, 4, 8)),
        (4096, (1,), [1, 1, 1], (1408, 1344, 1344)),  # a multiple of 64
        (96, (1,), [1, 1, 1], (32, 32, 32)),
    ],
)
def test_shares_are_cut_at_the_coarsest_level_that_is_enough(size, granules, shares, sizes):
    ranges = allot(size, granules, shares)
    assert tuple(stop - start for start, stop in ranges) == sizes
    assert [start for start, _ in ranges] == [sum(sizes[:card]) for card in range(len(sizes))]


def test_more_cards_than_heads_are_refused():
    with pytest.raises(ConfigurationError):
        allot(8, (4,), [1, 1, 1])
    with pytest.raises(ConfigurationError, match="4 parts cannot be dealt out to 5 cards"):
        allot(16, (4, 8), [1] * 5)


@given(
    groups=st.integers(1, 6), heads=st.integers(1, 6), width=st.integers(1, 4),
    shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
)  # fmt: skip
def test_a_card_has_whole_groups_or_lies_in_one(groups, heads, width, shares):
    group = heads * width
    granules = (width, group) if heads > 1 else (width,)
    if len(shares) > groups * heads:
        with pytest.raises(ConfigurationError):
            allot(groups * group, granules, shares)
        return
    try:
        ranges = allot(groups * group, granules, shares)
    except ConfigurationError:
        assert len(shares) > groups, "only where several cards share groups can they fail to fit"
        return
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
    assert ranges[-1][1] == groups * group
    for start, stop in ranges:
        in_one = start // group == (stop - 1) // group
        assert stop > start
        assert start % width == stop % width == 0
        assert in_one or start % group == stop % group == 0
