"""Groups of cards along the fastest links.

four cards, two bridges    0 ==== 2 ---- 1 ==== 3        groups of two: (0, 2) (1, 3)
"""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.groups import grouping, groupings
from poolrt.topology.box import virtual_box
from poolrt.topology.build import virtual_topology
from poolrt.topology.route import route


@pytest.mark.parametrize(
    ("box", "pairs"),
    [
        ("4x-rtx3090-two-pairs", ((0, 2), (1, 3))),
        ("8x-a100-pcie-four-pairs", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("8x-v100-dgx1", ((0, 3), (1, 2), (4, 7), (5, 6))),
        ("4x-h100-sxm", ((0, 1), (2, 3))),
    ],
)
def test_pairs_are_those_with_a_bridge_or_the_most_links(box, pairs):
    assert grouping(virtual_box(box), 2) == pairs


def test_groups_of_every_size_that_leaves_no_card_out_the_largest_first():
    assert [len(groups[0]) for groups in groupings(virtual_topology([1] * 6))] == [6, 3, 2]
    assert [len(groups[0]) for groups in groupings(virtual_topology([1] * 7))] == [7]
    assert groupings(virtual_topology([1])) == []


def test_the_largest_card_leads():
    assert grouping(virtual_topology([1, 3, 2]), 3) == ((1, 2, 0),)


@settings(max_examples=40)
@given(data=st.data())
def test_every_card_is_in_one_group_and_the_first_group_has_the_fastest_link(boxes, data):
    topology = data.draw(boxes(most_cards=6))
    for groups in groupings(topology):
        assert sorted(chain(*groups)) == list(range(len(topology)))
        assert len({len(group) for group in groups}) == 1
        speeds = [
            min(route(topology, a, b).bytes_per_s, route(topology, b, a).bytes_per_s)
            for a in range(len(topology))
            for b in range(a)
        ]
        inside = [
            min(route(topology, a, b).bytes_per_s, route(topology, b, a).bytes_per_s)
            for group in groups
            for a in group
            for b in group
            if a != b
        ]
        assert max(inside) == max(speeds)
