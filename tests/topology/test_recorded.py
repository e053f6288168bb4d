"""What people pasted, word for word, against what their machines are.

The texts are transcriptions of public ones: [snip] and redacted UUIDs are theirs. Command lines were put between.
"""

from pathlib import Path

import pytest

from poolrt.topology.assemble import assemble
from poolrt.topology.pasted.read import read_pasted

RECORDED = Path(__file__).parent / "recorded"

DGX1 = """
    X   NV1 NV1 NV2 NV2 SYS SYS SYS
    NV1 X   NV2 NV1 SYS NV2 SYS SYS
    NV1 NV2 X   NV2 SYS SYS NV1 SYS
    NV2 NV1 NV2 X   SYS SYS SYS NV1
    NV2 SYS SYS SYS X   NV1 NV1 NV2
    SYS NV2 SYS SYS NV1 X   NV2 NV1
    SYS SYS NV1 SYS NV1 NV2 X   NV2
    SYS SYS SYS NV1 NV2 NV1 NV2 X
"""
TWO_PAIRS = """
    X    PHB  NV4  NODE
    PHB  X    NODE NV4
    NV4  NODE X    PHB
    NODE NV4  PHB  X
"""
MIXED = """
    X    NODE NODE NODE NODE
    NODE X    NODE NODE NODE
    NODE NODE X    NODE NODE
    NODE NODE NODE X    PHB
    NODE NODE NODE PHB  X
"""


def everywhere(cards, relation):
    return "\n".join(" ".join("X" if x == y else relation for y in range(cards)) for x in range(cards))


def in_pairs(pair, near, far, cards=8):
    def relation(x, y):
        return "X" if x == y else pair if x // 2 == y // 2 else near if x // 4 == y // 4 else far

    return "\n".join(" ".join(relation(x, y) for y in range(cards)) for x in range(cards))


BOXES = {
    # file: (relations, NUMA node of each card, lines that are remarked on)
    "dgx1_8x_v100_sxm2": (DGX1, [None] * 8, ["[snip]"]),
    "8x_a100_sxm4_nvswitch": (everywhere(8, "NV12"), [0] * 4 + [1] * 4, []),
    "8x_h100_sxm5_nvswitch": (everywhere(8, "NV18"), [0] * 4 + [1] * 4, []),
    "2x_h100_pcie_3bridges": (everywhere(2, "NV12"), [1, 1], []),
    "8x_a100_pcie_4_bridged_pairs_slurm": (in_pairs("NV12", "NODE", "NODE"), [0] * 4 + [1] * 4, []),
    "4x_gb200": (everywhere(4, "NV18"), [0, 0, 1, 1], []),
    "2x_rtx3090_nv4": (everywhere(2, "NV4"), [0, 0], []),
    "4x_rtx3090_two_bridged_pairs": (TWO_PAIRS, [0] * 4, []),
    "8x_rtx4090_all_sys": (everywhere(8, "SYS"), [0] * 4 + [1] * 4, []),
    "2x_rtx5090_p2p_gns": (everywhere(2, "PHB"), [0, 0], []),
    "2x_a100_pcie_no_bridge": (everywhere(2, "NODE"), [1, 1], []),
    "4x_h100_direct_nv6": (everywhere(4, "NV6"), [3, 1, 7, 5], []),
    "2x_rtx2080ti_wsl2_link1_inactive": ("X", [None], ["Link 0: 25.781 GB/s"]),
    "8x_rtxpro6000_pex890xx_dual_epyc": (in_pairs("PIX", "NODE", "SYS"), [0] * 4 + [1] * 4, []),
    "5x_blackwell_mixed_patched_p2p_ok": (MIXED, [0] * 5, []),
    "2x_rtx3090_sys_dual_socket": (everywhere(2, "SYS"), [None, 1], []),
}


def read(name):
    return read_pasted((RECORDED / f"{name}.txt").read_text(encoding="utf-8"))


def topology_of(name):
    return assemble(read(name).machine, "recorded", lambda position: f"vcard:{position}")


def test_every_recorded_text_has_its_expectation():
    assert {path.stem for path in RECORDED.glob("*.txt")} == set(BOXES)


@pytest.mark.parametrize("name", BOXES)
def test_relations_are_those_of_the_box(name):
    expected = [row.split() for row in BOXES[name][0].strip().splitlines()]
    topology = topology_of(name)
    assert len(topology) == len(expected)
    for source, row in enumerate(expected):
        for target, relation in enumerate(row):
            if source != target:
                link = topology.link(source, target)
                assert link.relation == relation
                assert (link.kind == "NVLINK") == relation.startswith("NV")


@pytest.mark.parametrize("name", BOXES)
def test_numa_nodes_are_those_of_the_box(name):
    assert [card.numa_node for card in read(name).machine.cards] == BOXES[name][1]


@pytest.mark.parametrize("name", BOXES)
def test_only_what_cannot_be_used_is_remarked_on(name):
    reading = read(name)
    assert [remark.text.strip() for remark in reading.remarks] == BOXES[name][2]
    lines = (RECORDED / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert all(lines[remark.number - 1].strip() == remark.text.strip() for remark in reading.remarks)


def test_twelve_of_eighteen_links_and_their_far_ends():
    """`nvlink -R` numbers active links 0..11, `nvlink -s` all of 0..17: link 6 of -s is link 4 of -R."""
    first, second = read("2x_h100_pcie_3bridges").machine.cards
    assert (first.name, first.uuid) == ("NVIDIA H100 PCIe", "GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9")
    assert (first.bus_id, second.bus_id) == ("0000:c2:00.0", "0000:d5:00.0")
    assert [port.index for port in first.nvlinks if not port.active] == [4, 5, 10, 11, 16, 17]
    assert {port.remote_bus_id for port in first.nvlinks if port.active} == {"0000:d5:00.0"}
    assert first.nvlinks[6].signal_bytes_per_s == 26.562e9
    pair = read("2x_h100_pcie_3bridges").machine.pair(0, 1)
    assert pair.nvlinks == 12


def test_links_of_some_cards_only():
    cards = read("dgx1_8x_v100_sxm2").machine.cards
    assert [card.active_links for card in cards] == [6, None, None, None, None, None, None, 6]
    assert cards[7].name == "Tesla V100-SXM2-32GB"
    assert cards[4].cpu_affinity == "20-39,60-79"


def test_cores_hidden_by_a_control_group_do_not_shift_the_numa_node():
    cards = read("8x_a100_pcie_4_bridged_pairs_slurm").machine.cards
    assert [card.cpu_affinity for card in cards] == ["0-15,56-71"] * 4 + [None] * 4


def test_no_link_is_up_is_told_from_not_seen():
    assert [card.nvlinks for card in read("2x_a100_pcie_no_bridge").machine.cards] == [(), ()]
    assert [card.nvlinks for card in read("4x_gb200").machine.cards] == [None] * 4


def test_a_dead_link_without_a_card_line_above():
    (card,) = read("2x_rtx2080ti_wsl2_link1_inactive").machine.cards
    assert [(port.index, port.active) for port in card.nvlinks] == [(0, True), (1, False)]


def test_refused_peers_are_joined_through_the_host():
    pair = read("2x_rtx5090_p2p_gns").machine.pair(0, 1)
    assert pair.peer_status == {"read": "GNS", "write": "GNS"}
    assert topology_of("2x_rtx5090_p2p_gns").link(0, 1).kind == "HOST"


def test_a_claim_about_pcie_is_kept_as_a_claim():
    machine = read("5x_blackwell_mixed_patched_p2p_ok").machine
    assert {str(pair.peer_status) for pair in machine.pairs} == {"{'pcie': 'OK'}"}
    assert len(machine.pairs) == 20


def test_links_of_unknown_cards_are_entered_low():
    assert topology_of("2x_rtx3090_nv4").link(0, 1).bytes_per_s == pytest.approx(51.75e9)
    assert topology_of("8x_a100_sxm4_nvswitch").link(0, 7).bytes_per_s == pytest.approx(270e9)
