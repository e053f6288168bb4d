import pytest

from poolrt.errors import ConfigurationError
from poolrt.topology.build import MAXIMUM_CARDS, logical_topology, virtual_topology


def test_virtual_cards_have_a_device_each_and_are_all_joined():
    topology = virtual_topology([4, 8, 16])
    assert [card.device for card in topology.cards] == ["vcard:0", "vcard:1", "vcard:2"]
    assert [card.memory_bytes for card in topology.cards] == [4, 8, 16]
    assert {card.kind for card in topology.cards} == {"virtual"}
    assert {(x.source, x.target) for x in topology.links} == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    assert {x.kind for x in topology.links} == {"PCIE"}


def test_a_stated_link_joins_virtual_cards_for_planning():
    assert virtual_topology([4, 4], "nvlink3x4").link(0, 1).relation == "NV4"
    with pytest.raises(ConfigurationError):
        virtual_topology([4, 4], "string")


def test_logical_cards_share_a_device_and_have_no_links():
    topology = logical_topology("cuda:1", [8, 8], name="H200")
    assert [card.device for card in topology.cards] == ["cuda:1", "cuda:1"]
    assert topology.links == ()
    assert topology.cards[1].name == "H200, share 1"


@pytest.mark.parametrize("count", [0, MAXIMUM_CARDS + 1])
def test_the_number_of_cards_is_limited(count):
    with pytest.raises(ConfigurationError):
        virtual_topology([1] * count)
    with pytest.raises(ConfigurationError):
        logical_topology("cuda:0", [1] * count)


def test_a_card_without_memory_is_refused():
    with pytest.raises(ConfigurationError):
        virtual_topology([4, 0])
