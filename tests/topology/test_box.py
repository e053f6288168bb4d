from itertools import permutations

import pytest

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.topology.assemble import nvlink_count
from poolrt.topology.box import box_names, load_box, virtual_box
from poolrt.topology.known_cards import known_card

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "cards", "memory_gib", "pair", "relation", "kind"),
    [
        ("2x-rtx3090-nvlink", 2, 24, (0, 1), "NV4", "NVLINK"),
        ("4x-rtx3090-two-pairs", 4, 24, (0, 2), "NV4", "NVLINK"),
        ("4x-rtx3090-two-pairs", 4, 24, (0, 1), "PHB", "HOST"),
        ("2x-rtx3090-two-sockets", 2, 24, (0, 1), "SYS", "HOST"),
        ("2x-rtx4090", 2, 24, (0, 1), "PHB", "HOST"),
        ("8x-rtx4090", 8, 24, (0, 1), "SYS", "HOST"),
        ("2x-rtx5090", 2, 32, (0, 1), "PHB", "HOST"),
        ("2x-rtx2080ti-nvlink", 2, 11, (1, 0), "NV2", "NVLINK"),
        ("8x-v100-dgx1", 8, 32, (0, 3), "NV2", "NVLINK"),
        ("8x-v100-dgx1", 8, 32, (0, 5), "SYS", "HOST"),
        ("4x-a100-sxm", 4, 40, (1, 3), "NV4", "NVLINK"),
        ("8x-a100-sxm", 8, 80, (0, 7), "NV12", "NVLINK"),
        ("2x-a100-pcie", 2, 40, (0, 1), "NODE", "PCIE"),
        ("8x-a100-pcie-four-pairs", 8, 80, (2, 3), "NV12", "NVLINK"),
        ("2x-h100-pcie-nvlink", 2, 80, (0, 1), "NV12", "NVLINK"),
        ("4x-h100-sxm", 4, 80, (0, 3), "NV6", "NVLINK"),
        ("8x-h100-sxm", 8, 80, (0, 7), "NV18", "NVLINK"),
        ("8x-rtxpro6000", 8, 96, (0, 1), "PIX", "PCIE"),
        ("8x-rtxpro6000", 8, 96, (0, 7), "SYS", "PCIE"),
        ("4x-gb200", 4, 185, (0, 3), "NV18", "NVLINK"),
    ],
)
def test_a_box_has_the_cards_and_links_of_the_real_thing(name, cards, memory_gib, pair, relation, kind):
    topology = virtual_box(name)
    assert len(topology) == cards
    assert {card.kind for card in topology.cards} == {"virtual"}
    assert [card.device for card in topology.cards] == [f"vcard:{index}" for index in range(cards)]
    assert topology.cards[0].memory_bytes == pytest.approx(memory_gib * GIB, rel=0.01)
    link = topology.link(*pair)
    assert (link.relation, link.kind) == (relation, kind)


@pytest.mark.parametrize("name", box_names())
def test_a_box_is_whole(name):
    box = load_box(name)
    cards = box.machine.cards
    assert box.about
    assert box.sources
    assert known_card(cards[0].name) is not None
    for source, target in permutations(cards, 2):
        forth, back = box.machine.pair(source.index, target.index), box.machine.pair(target.index, source.index)
        assert forth.relation == back.relation is not None
        assert nvlink_count(forth) <= known_card(cards[0].name).healthy_links


@pytest.mark.parametrize("name", ["8x-v100-dgx1", "4x-a100-sxm", "4x-h100-sxm"])
def test_links_of_a_board_without_a_switch_add_up_to_those_of_the_card(name):
    machine = load_box(name).machine
    for card in machine.cards:
        links = sum(nvlink_count(pair) for pair in machine.pairs if pair.source == card.index)
        assert links == known_card(card.name).healthy_links


def test_what_was_measured_on_a_box_is_used():
    assert virtual_box("2x-h100-pcie-nvlink").link(0, 1).bytes_per_s == pytest.approx(256.6e9)


def test_an_unknown_box_is_refused_with_the_names_of_all():
    with pytest.raises(ConfigurationError) as refused:
        load_box("2x-rtx3090")
    assert all(name in str(refused.value) for name in box_names())


def test_memory_may_be_overridden():
    assert [card.memory_bytes for card in virtual_box("2x-rtx4090", [5, 6]).cards] == [5, 6]
    with pytest.raises(ConfigurationError):
        virtual_box("2x-rtx4090", [5])


def test_the_front_door_makes_the_cards_of_a_box():
    topology = poolrt.virtual(box="2x-rtx3090-nvlink", memory="64MiB")
    assert [card.memory_bytes for card in topology.cards] == [64 << 20] * 2
    assert topology.link(0, 1).kind == "NVLINK"


@pytest.mark.parametrize("beside", [{"cards": 2}, {"link": "nvlink3x4"}], ids=str)
def test_a_box_beside_a_number_of_cards_or_a_link_is_refused(beside):
    with pytest.raises(ConfigurationError):
        poolrt.virtual(box="2x-rtx3090-nvlink", **beside)
