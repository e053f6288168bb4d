import pytest

from poolrt.errors import DriverError
from poolrt.topology.discover import discover_cuda
from poolrt.topology.route import route


class FakeDriver:
    """Three cards; the first two reach each other, and only the first direction of 1 -> 2 works."""

    peers = frozenset({(0, 1), (1, 0), (1, 2)})

    def __init__(self, cards=3):
        self.cards = cards

    def device_count(self):
        return self.cards

    def device_name(self, card):
        return f"NVIDIA Example {card}"

    def total_memory(self, card):
        return (card + 1) << 30

    def can_access_peer(self, card, peer):
        return (card, peer) in self.peers


def test_cards_are_entered_as_the_driver_names_them():
    topology = discover_cuda(FakeDriver())
    assert [(x.index, x.name, x.device, x.memory_bytes) for x in topology.cards] == [
        (0, "NVIDIA Example 0", "cuda:0", 1 << 30),
        (1, "NVIDIA Example 1", "cuda:1", 2 << 30),
        (2, "NVIDIA Example 2", "cuda:2", 3 << 30),
    ]
    assert {card.kind for card in topology.cards} == {"cuda"}


def test_peer_access_becomes_a_p2p_route_in_that_direction_only():
    topology = discover_cuda(FakeDriver())
    assert len(topology.links) == 6
    routes = {(x.source, x.target): route(topology, x.source, x.target).kind for x in topology.links}
    assert {pair for pair, kind in routes.items() if kind == "P2P"} == FakeDriver.peers


def test_no_cards_is_an_empty_topology():
    assert len(discover_cuda(FakeDriver(cards=0))) == 0


def test_no_driver_is_an_empty_topology(monkeypatch):
    from poolrt import _C

    def missing():
        raise DriverError("there is no libcuda.so.1")

    monkeypatch.setattr(_C, "cuda_driver", missing)
    assert len(discover_cuda()) == 0


def test_a_driver_that_fails_later_is_not_hidden():
    class Failing(FakeDriver):
        def total_memory(self, card):
            raise DriverError("code 999")

    with pytest.raises(DriverError):
        discover_cuda(Failing())
