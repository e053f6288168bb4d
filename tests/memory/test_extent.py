"""Extents of a part of a block.

block      | card 0: 64 | card 1: 38 |
the part   ....|-------- 96 --------|.      ->  | card 0: 60 | card 1: 36 |
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.memory.extent import Extent, PoolStats, TierStats, clipped

EXTENTS = st.lists(st.builds(Extent, st.sampled_from([0, 1, None]), st.integers(1, 9)), max_size=6)


def test_the_part_of_a_block():
    assert clipped([Extent(0, 64), Extent(1, 38)], 4, 96) == [Extent(0, 60), Extent(1, 36)]


@given(EXTENTS, st.integers(0, 40), st.integers(0, 60))
def test_byte_by_byte(extents, skip, nbytes):
    places = [card for card, size in extents for _ in range(size)][skip : skip + nbytes]
    found = clipped(extents, skip, nbytes)
    assert [card for card, size in found for _ in range(size)] == places
    assert all(here.card != there.card for here, there in pairwise(found))


@pytest.fixture
def stats() -> PoolStats:
    tiers = tuple(
        TierStats(card=card, limit_nbytes=64 << 20, mapped_nbytes=mapped << 20, peak_mapped_nbytes=mapped << 20)
        for card, mapped in ((0, 64), (1, 36), (None, 0))
    )
    counts = dict.fromkeys(("hits", "misses", "evictions", "refusals", "driver_calls"), 0)
    return PoolStats(
        tiers=tiers,
        live_nbytes=100 << 20,
        requested_nbytes=100 << 20,
        cached_nbytes=0,
        deferred_nbytes=0,
        condemned_nbytes=0,
        spilled_nbytes=36 << 20,
        peak_live_nbytes=100 << 20,
        fragmentation=0.0,
        **counts,
    )


def test_a_tier_by_its_card(stats):
    assert stats.tier(1).mapped_nbytes == 36 << 20
    assert stats.tier(None).card is None


def test_stats_read_as_a_sentence(stats):
    assert "100 MiB live (36 MiB of it spilled)" in str(stats)
    assert "card 0 64 MiB of 64 MiB" in str(stats)
    assert "host 0 B of 64 MiB" in str(stats)
