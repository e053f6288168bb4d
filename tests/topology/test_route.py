import pytest

from poolrt.errors import ConfigurationError
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.catalog import link_preset
from poolrt.topology.route import reachable_peers, route
from poolrt.topology.topology import Link, Topology


@pytest.mark.parametrize(("link", "kind"), [("nvlink3x4", "P2P"), ("pcie4x16", "P2P"), ("host", "HOST"), (None, "P2P")])
def test_the_link_decides_the_route(link, kind):
    way = route(virtual_topology([1, 1], link), 0, 1)
    assert (way.source, way.target, way.kind) == (0, 1, kind)


def test_a_pair_without_a_link_goes_through_the_host():
    unlinked = Topology(cards=virtual_topology([1, 1]).cards)
    way = route(unlinked, 1, 0)
    assert way.kind == "HOST"
    assert way.bytes_per_s == link_preset("host").bytes_per_s


def test_within_a_device_bytes_stay_local_and_cost_nothing_beside_a_link():
    shares = logical_topology("cuda:0", [1, 1])
    assert route(shares, 0, 1).kind == "LOCAL"
    assert route(shares, 0, 1).copy_s(1 << 40) == 0.0
    assert route(virtual_topology([1, 1], "nvlink3x4"), 1, 1).kind == "LOCAL"


def test_a_copy_takes_latency_and_bandwidth():
    way = route(virtual_topology([1, 1], "nvlink3x4"), 0, 1)
    assert way.copy_s(0) == way.latency_s
    assert way.copy_s(way.bytes_per_s, copies=3) == pytest.approx(1 + 3 * way.latency_s)


@pytest.mark.parametrize("pair", [(0, 2), (-1, 0)])
def test_cards_that_are_not_there_have_no_route(pair):
    with pytest.raises(ConfigurationError):
        route(virtual_topology([1, 1]), *pair)


def test_peers_are_those_joined_both_ways_the_nearest_first():
    """0 === 1 (NVLink), 0 --- 2 (PCIe), 0 ... 3 (through the host), 4 -> 0 in one direction only."""

    def links(kind: str, pairs: list[tuple[int, int]], speed: float) -> list[Link]:
        return [Link(source=a, target=b, kind=kind, relation="SYS", bytes_per_s=speed, latency_s=0.0) for a, b in pairs]

    cards = virtual_topology([1] * 5).cards
    stated = [
        *links("PCIE", [(0, 2), (2, 0)], 20e9),
        *links("NVLINK", [(0, 1), (1, 0)], 50e9),
        *links("HOST", [(0, 3), (3, 0)], 90e9),
        *links("NVLINK", [(4, 0)], 50e9),
    ]
    topology = Topology(cards=cards, links=tuple(stated))
    assert reachable_peers(topology, 0) == [1, 2]
    assert reachable_peers(topology, 3) == []
    assert reachable_peers(logical_topology("cuda:0", [1, 1, 1]), 1) == [0, 2]
