import pytest

from poolrt.topology.assemble import assemble, nvlink_count
from poolrt.topology.catalog import link_preset
from poolrt.topology.facts import CardFacts, Machine, NvlinkPort, PairFacts, PcieFacts


def machine_of(*pairs, name=None, cards=2, **facts):
    return Machine(cards=tuple(CardFacts(index=at, name=name, **facts) for at in range(cards)), pairs=pairs)


def link_of(machine):
    return assemble(machine, "recorded", lambda position: f"vcard:{position}").link(0, 1)


def pair(**facts):
    return PairFacts(source=0, target=1, **facts)


@pytest.mark.parametrize(
    ("facts", "name", "wire"),
    [
        ({"relation": "NV4"}, "NVIDIA GeForce RTX 3090", "nvlink3rtxx4"),
        ({"relation": "NV4"}, "NVIDIA A100-SXM4-40GB", "nvlink3sxmx4"),
        ({"relation": "NV18"}, "NVIDIA GB200", "nvlink5x18"),
        ({"relation": "NV12", "nvlinks": 10}, "NVIDIA A100-SXM4-80GB", "nvlink3sxmx10"),
        ({"relation": "NV4"}, None, "nvlink3rtxx4"),
        ({"relation": "NV6"}, None, "nvlink2x6"),
        ({"relation": "NV12"}, None, "nvlink3sxmx12"),
        ({"relation": "NV18"}, None, "nvlink4x18"),
    ],
)
def test_links_that_are_up_count(facts, name, wire):
    assert link_of(machine_of(pair(**facts), name=name)).bytes_per_s == link_preset(wire).bytes_per_s


def test_a_rate_tells_more_than_a_name():
    ports = (NvlinkPort(index=0, active=True, signal_bytes_per_s=53.125e9),)
    machine = machine_of(pair(nvlinks=18), name="NVIDIA H100 80GB HBM3", nvlinks=ports)
    assert link_of(machine).bytes_per_s == link_preset("nvlink5x18").bytes_per_s


def test_more_links_than_any_card_has_are_still_a_link():
    link = link_of(machine_of(pair(relation="NV36")))
    assert (link.kind, link.relation) == ("NVLINK", "NV36")
    assert link.bytes_per_s == pytest.approx(2 * link_preset("nvlink5x18").bytes_per_s)


def test_a_link_that_died_is_not_counted():
    assert nvlink_count(pair(relation="NV4", nvlinks=0)) == 0
    assert link_of(machine_of(pair(relation="NV4", nvlinks=0))).kind == "PCIE"


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"can_access": True}, "PCIE"),
        ({"can_access": False}, "HOST"),
        ({"peer_status": {"read": "OK", "write": "OK"}}, "PCIE"),
        ({"peer_status": {"read": "OK", "write": "GNS"}}, "HOST"),
        ({"peer_status": {"read": "GNS"}, "can_access": True}, "PCIE"),
        ({}, "PCIE"),
    ],
)
def test_a_refused_peer_goes_through_the_host(facts, kind):
    link = link_of(machine_of(pair(relation="PHB", **facts)))
    assert (link.kind, link.relation) == (kind, "PHB")


def test_a_card_known_to_be_refused_goes_through_the_host_unless_the_driver_says_otherwise():
    assert link_of(machine_of(name="NVIDIA GeForce RTX 4090")).kind == "HOST"
    assert link_of(machine_of(pair(can_access=True), name="NVIDIA GeForce RTX 4090")).kind == "PCIE"


def test_the_narrower_slot_sets_the_pace():
    wide = CardFacts(index=0, pcie=PcieFacts(maximum_generation=5, maximum_width=16))
    narrow = CardFacts(index=1, pcie=PcieFacts(maximum_generation=4, maximum_width=8))
    assert link_of(Machine(cards=(wide, narrow))).bytes_per_s == link_preset("pcie4x8").bytes_per_s


def test_a_slot_that_was_not_seen_is_the_card_s_or_a_low_one():
    assert link_of(machine_of(name="NVIDIA H100 PCIe")).bytes_per_s == link_preset("pcie5x16").bytes_per_s
    assert link_of(machine_of()).bytes_per_s == link_preset("pcie3x16").bytes_per_s


def test_what_was_measured_replaces_the_catalogue():
    assert link_of(machine_of(pair(relation="NV4", measured_bytes_per_s=3e9))).bytes_per_s == 3e9


def test_cards_are_numbered_anew():
    machine = Machine(
        cards=(CardFacts(index=5, memory_bytes=7), CardFacts(index=2)),
        pairs=(PairFacts(source=5, target=2, relation="PIX"),),
    )
    topology = assemble(machine, "recorded", lambda position: f"vcard:{position}")
    assert [(card.index, card.name, card.memory_bytes) for card in topology.cards] == [(0, "GPU 5", 7), (1, "GPU 2", 0)]
    assert topology.link(0, 1).relation == "PIX"
