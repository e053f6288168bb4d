"""Every check: a machine on which it finds just that, and a healthy one on which no check finds anything."""

from dataclasses import replace
from pathlib import Path

import pytest

from poolrt.topology.doctor.examine import CHECKS, examine, exit_code
from poolrt.topology.facts import (
    CardFacts,
    CopyProof,
    DriverFacts,
    FabricFacts,
    HealthFacts,
    HostFacts,
    Machine,
    NvlinkPort,
    PairFacts,
    PcieFacts,
)
from poolrt.topology.pasted.read import read_pasted

GIB = 1 << 30
RECORDED = Path(__file__).parent / "recorded"


def healthy_card(index, name="NVIDIA RTX A6000", links=4):
    """One of two bridged cards of which everything was seen."""
    ports = tuple(
        NvlinkPort(index=at, active=True, signal_bytes_per_s=14.0625e9, remote="GPU",
                   remote_bus_id=f"0000:0{2 - index}:00.0", errors=0, new_errors=0)
        for at in range(links)
    )  # fmt: skip
    return CardFacts(
        index=index,
        name=name,
        uuid=f"GPU-{index}",
        bus_id=f"0000:0{index + 1}:00.0",
        cuda_index=index,
        memory_bytes=48 * GIB,
        compute_capability=(8, 6),
        numa_node=0,
        nvlinks=ports,
        pcie=PcieFacts(generation=4, width=16, maximum_generation=4, maximum_width=16, card_generation=4, working=True,
                       replays=0, fatal_errors=0),
        health=HealthFacts(throttle_reasons=(), power_limit_watts=300, default_power_limit_watts=300,
                           uncorrected_ecc_errors=0, rows_to_remap=False, recovery_action="NONE"),
        fabric=FabricFacts(state="NOT_SUPPORTED"),
        mig=False,
        bar1_bytes=64 * GIB,
        virtualization="none",
        compute_mode="default",
        mapped_memory=True,
    )  # fmt: skip


def healthy_pair(source, target, links=4):
    return PairFacts(
        source=source, target=target, relation=f"NV{links}" if links else "PIX", pcie_relation="PIX", nvlinks=links,
        peer_status={"read": "OK", "write": "OK"}, can_access=True,
        proof=CopyProof(nbytes=1 << 26, wrong_nbytes=0, nvlink_nbytes=1 << 26 if links else None),
    )  # fmt: skip


def healthy(cards=2, links=4, name="NVIDIA RTX A6000"):
    everyone = range(cards)
    return Machine(
        cards=tuple(healthy_card(index, name, links) for index in everyone),
        pairs=tuple(healthy_pair(x, y, links) for x in everyone for y in everyone if x != y),
        driver=DriverFacts(
            loaded=True, version="550.54.14", cuda_version=(12, 4), toolkit_version=(12, 8), nvlink_mode="FULL",
            confidential_computing=False, parameters={"RegistryDwords": '""'}, unified_memory_hmm=False,
            multi_process_service=False,
        ),
        host=HostFacts(
            kernel_command_line="quiet", iommu_group_types=frozenset(), redirecting_bridges=(), virtual_machine=False,
            wsl=False, container=False, environment={}, shared_memory_bytes=64 * GIB, locked_memory_bytes=-1,
            memory_limit_bytes=-1, xid_events=(), nvidia_devices=("0000:01:00.0",), root=True,
        ),
    )  # fmt: skip


def pcie_box(cards=2, name="NVIDIA RTX 6000 Ada Generation"):
    """Cards without NVLink, on one PCIe switch."""
    machine = healthy(cards, links=0, name=name)
    return replace(machine, cards=tuple(replace(card, compute_capability=(8, 9)) for card in machine.cards))


def with_card(machine, index=0, **changes):
    cards = tuple(replace(card, **changes) if card.index == index else card for card in machine.cards)
    return replace(machine, cards=cards)


def with_cards(machine, **changes):
    return replace(machine, cards=tuple(replace(card, **changes) for card in machine.cards))


def with_pairs(machine, **changes):
    return replace(machine, pairs=tuple(replace(pair, **changes) for pair in machine.pairs))


def with_port(machine, index=0, port=1, **changes):
    ports = machine.cards[index].nvlinks
    changed = tuple(replace(one, **changes) if one.index == port else one for one in ports)
    return with_card(machine, index, nvlinks=changed)


def with_driver(machine, **changes):
    return replace(machine, driver=replace(machine.driver, **changes))


def with_host(machine, **changes):
    return replace(machine, host=replace(machine.host, **changes))


def with_slot(machine, index=0, **changes):
    return with_card(machine, index, pcie=replace(machine.cards[index].pcie, **changes))


def with_health(machine, index=0, **changes):
    return with_card(machine, index, health=replace(machine.cards[index].health, **changes))


def with_environment(machine, **variables):
    return with_host(machine, environment=variables)


def fabric_of(cards):
    """Cards that all hang on switches."""
    machine = healthy(cards, links=18, name="NVIDIA H100 80GB HBM3")
    ports = tuple(NvlinkPort(index=at, active=True, signal_bytes_per_s=26.5625e9, remote="SWITCH", errors=0,
                             remote_bus_id="0000:c0:00.0") for at in range(18))  # fmt: skip
    machine = with_cards(machine, nvlinks=ports, compute_capability=(9, 0), fabric=FabricFacts(state="COMPLETED"))
    return replace(
        with_driver(machine, fabric_manager="running"),
        cards=tuple(
            replace(card, pcie=replace(card.pcie, generation=5, maximum_generation=5, card_generation=5))
            for card in with_driver(machine).cards
        ),
    )


def no_links(machine, index):
    """A card whose links are all down, as it looks to the others too."""
    pairs = tuple(
        replace(pair, relation="NODE", nvlinks=0, proof=None) if index in (pair.source, pair.target) else pair
        for pair in machine.pairs
    )
    return with_card(replace(machine, pairs=pairs), index, nvlinks=())


BLACKWELL = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
TWO_SWITCHES = replace(
    pcie_box(4),
    pairs=tuple(
        replace(pair, relation="PIX" if pair.source // 2 == pair.target // 2 else "NODE") for pair in pcie_box(4).pairs
    ),
)

HEALTHY = {
    "two bridged": healthy(),
    "PCIe switch": pcie_box(),
    "NVSwitch": fabric_of(8),
    "one card": pcie_box(1),
    "three bridges of an H100 PCIe": with_cards(
        healthy(2, links=12, name="NVIDIA H100 PCIe"),
        compute_capability=(9, 0),
        pcie=PcieFacts(generation=5, width=16, maximum_generation=5, maximum_width=16, card_generation=5, replays=0),
    ),
}

# id, verdict, machine, other checks that rightly speak up too
CASES = [
    ("driver-version", "fail", with_driver(healthy(), nvml_error="LIB_RM_VERSION_MISMATCH"), ()),
    ("driver-version", "fail", with_driver(healthy(), cuda_error="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), ()),
    ("driver-version", "fail", with_driver(healthy(), toolkit_version=(13, 0)), ()),
    ("driver-version", "fail", with_driver(with_cards(healthy(), cuda_index=None), cuda_error="UNKNOWN"), ()),
    ("driver-version", "warn", with_driver(healthy(), version="545.23.08"), ()),
    ("driver-version", "unknown", with_driver(healthy(), version=None), ()),
    ("visible-devices", "warn", with_card(healthy(), 1, cuda_index=None), ()),
    ("visible-devices", "warn", with_card(with_card(healthy(), 0, cuda_index=1), 1, cuda_index=0), ()),
    ("visible-devices", "fail", with_environment(healthy(), CUDA_VISIBLE_DEVICES="MIG-1"), ()),
    ("mig", "fail", with_card(healthy(), mig=True), ()),
    ("fabric-manager", "fail", with_card(fabric_of(8), 3, fabric=FabricFacts(state="IN_PROGRESS")), ()),
    ("fabric-manager", "fail", with_card(fabric_of(8), 3, fabric=FabricFacts(state="COMPLETED", status=999)), ()),
    ("fabric-manager", "fail", with_driver(healthy(), cuda_error="CUDA_ERROR_SYSTEM_NOT_READY"), ()),
    ("fabric-manager", "fail", with_driver(with_cards(fabric_of(8), fabric=None), fabric_manager="stopped"), ()),
    ("nvlink-active", "fail", with_port(healthy(), active=False), ()),
    ("nvlink-active", "fail", with_port(with_cards(healthy(), name=None), active=False), ()),
    ("nvlink-active", "fail", with_port(fabric_of(8), active=False), ()),
    ("nvlink-active", "warn", with_cards(with_pairs(pcie_box(name="NVIDIA RTX A6000")), nvlinks=()), ()),
    ("nvlink-active", "unknown", with_cards(healthy(), nvlinks=None), ("nvlink-far-ends", "nvlink-errors")),
    ("nvlink-far-ends", "warn", with_port(healthy(), remote="UNKNOWN"), ()),
    ("nvlink-far-ends", "warn", with_port(healthy(), remote_bus_id="0000:77:00.0"), ()),
    ("nvlink-enabled", "fail", with_driver(healthy(), parameters={"RegistryDwords": '"RMNvLinkEnable=0x0"'}), ()),
    ("nvlink-enabled", "fail", with_pairs(healthy(), peer_status={"nvlink": "DR"}), ()),
    ("nvlink-enabled", "warn", with_driver(healthy(), nvlink_mode="HALF"), ()),
    ("nvlink-fabric-complete", "fail", no_links(fabric_of(8), 5), ("nvlink-active", "nccl-level")),
    ("nvlink-errors", "warn", with_port(healthy(), errors=9), ()),
    ("nvlink-errors", "fail", with_port(healthy(), errors=9, new_errors=2), ()),
    ("nvlink-used", "fail", with_pairs(healthy(), proof=CopyProof(nbytes=100, wrong_nbytes=0, nvlink_nbytes=3)), ()),
    ("nvlink-used", "unknown", with_pairs(healthy(), proof=CopyProof(nbytes=100, wrong_nbytes=0)), ()),
    ("peer-access", "warn", with_pairs(pcie_box(), can_access=False), ()),
    ("peer-access", "warn", with_pairs(pcie_box(), can_access=None, peer_status={"read": "GNS"}), ()),
    ("peer-access", "fail", with_pairs(healthy(), can_access=False), ()),
    ("peer-access", "unknown", with_pairs(healthy(), can_access=None, peer_status={}), ()),
    ("copies-arrive", "fail", with_pairs(healthy(), proof=CopyProof(nbytes=9, wrong_nbytes=1, nvlink_nbytes=9)), ()),
    ("copies-arrive", "unknown", with_pairs(pcie_box(), proof=None), ()),
    ("same-architecture", "warn", with_card(pcie_box(), name="NVIDIA A10"), ()),
    ("same-architecture", "warn", with_card(with_cards(healthy(), name=None), compute_capability=(9, 0)), ()),
    ("iommu", "fail", with_host(pcie_box(), iommu_group_types=frozenset({"DMA-FQ"})), ()),
    ("iommu", "warn", with_host(healthy(), iommu_group_types=frozenset({"DMA"})), ()),
    ("iommu", "unknown", with_host(healthy(), iommu_group_types=None), ()),
    ("acs-redirect", "warn", with_host(healthy(), redirecting_bridges=("0000:00:01.1",)), ()),
    ("acs-redirect", "unknown", with_host(healthy(), redirecting_bridges=None), ()),
    ("bar1-window", "warn", with_card(pcie_box(), bar1_bytes=256 << 20), ()),
    ("peer-count", "warn", pcie_box(10), ()),
    ("unified-memory-hmm", "warn", with_driver(pcie_box(name=BLACKWELL), unified_memory_hmm=True), ()),
    ("page-mapping", "fail", with_card(healthy(), mapped_memory=False), ()),
    ("virtual-machine", "warn", with_cards(healthy(), virtualization="passthrough"), ()),
    ("virtual-machine", "warn", with_cards(healthy(), virtualization="vgpu"), ()),
    ("virtual-machine", "warn", with_host(healthy(), virtual_machine=True), ()),
    ("wsl", "warn", with_host(healthy(), wsl=True), ()),
    ("compute-mode", "warn", with_card(healthy(), compute_mode="exclusive process"), ()),
    ("compute-mode", "fail", with_card(healthy(), compute_mode="prohibited"), ()),
    ("compute-mode", "warn", with_driver(healthy(), multi_process_service=True), ()),
    ("confidential-computing", "warn", with_driver(healthy(), confidential_computing=True), ()),
    ("numa-nodes", "warn", with_card(pcie_box(), numa_node=1), ()),
    ("numa-nodes", "unknown", with_card(healthy(), numa_node=None), ()),
    ("pcie-link", "warn", with_slot(healthy(), width=4, maximum_width=4), ()),
    ("pcie-link", "warn", with_slot(healthy(), generation=3, maximum_generation=3), ()),
    ("pcie-link", "warn", with_slot(healthy(), generation=1), ()),
    ("pcie-link", "unknown", with_slot(healthy(), generation=1, working=False), ()),
    ("pcie-errors", "warn", with_slot(healthy(), replays=4), ()),
    ("pcie-errors", "fail", with_slot(healthy(), fatal_errors=1), ()),
    ("switch-writes", "warn", TWO_SWITCHES, ("nccl-level",)),
    ("nccl-variables", "warn", with_environment(healthy(), NCCL_P2P_DISABLE="1"), ()),
    ("nccl-variables", "warn", with_environment(healthy(), NCCL_P2P_LEVEL="LOC"), ()),
    ("nccl-variables", "warn", with_environment(healthy(), NCCL_SHM_DISABLE="1"), ()),
    ("nccl-level", "warn", with_pairs(pcie_box(), relation="PHB"), ()),
    ("shared-memory", "warn", with_host(healthy(), shared_memory_bytes=64 << 20), ()),
    ("locked-memory", "warn", with_host(healthy(), locked_memory_bytes=65536), ()),
    ("locked-memory", "warn", with_host(healthy(), memory_limit_bytes=8 * GIB), ()),
    ("card-errors", "fail", with_health(healthy(), uncorrected_ecc_errors=1), ()),
    ("card-errors", "fail", with_health(healthy(), rows_to_remap=True), ()),
    ("card-errors", "fail", with_health(healthy(), recovery_action="DRAIN_P2P"), ()),
    ("card-errors", "fail", with_host(healthy(), xid_events=("NVRM: Xid (PCI:0000:01:00): 74",)), ()),
    ("card-errors", "unknown", with_host(healthy(), xid_events=None), ()),
    ("throttling", "warn", with_health(healthy(), throttle_reasons=("hardware thermal slowdown",)), ()),
    ("power-limit", "warn", with_health(healthy(), power_limit_watts=200), ()),
]  # fmt: skip


def verdicts(machine):
    checks = examine(machine)
    assert len({check.id for check in checks}) == len(checks)
    return {check.id: check for check in checks}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_is_all_well(name):
    checks = verdicts(HEALTHY[name])
    assert {check.id: check.evidence for check in checks.values() if check.verdict != "ok"} == {}
    assert len(checks) == len(CHECKS)
    assert all(check.evidence and not check.fix for check in checks.values())
    assert exit_code(list(checks.values())) == 0


@pytest.mark.parametrize(("name", "verdict", "machine", "also"), CASES, ids=[f"{x[0]}-{x[1]}" for x in CASES])
def test_a_check_finds_just_what_is_wrong(name, verdict, machine, also):
    checks = verdicts(machine)
    assert checks[name].verdict == verdict
    assert checks[name].evidence
    assert checks[name].fix or verdict == "unknown"
    others = {check.id for check in checks.values() if check.verdict != "ok"} - {name}
    assert others == set(also)


def test_every_check_has_a_machine_that_triggers_it():
    found = {name for name, verdict, _, _ in CASES if verdict in ("warn", "fail")}
    assert found | {"cards"} == set(verdicts(healthy()))


def test_a_power_cap_under_load_is_as_it_should_be():
    assert verdicts(with_health(healthy(), throttle_reasons=("power cap",)))["throttling"].verdict == "ok"


def test_an_iommu_that_passes_addresses_through_is_well():
    passing = with_host(pcie_box(), iommu_group_types=frozenset({"identity"}), kernel_command_line="iommu=pt")
    assert verdicts(passing)["iommu"].verdict == "ok"


def test_a_missing_bridge_of_several_is_told_from_a_dead_link():
    ports = tuple(NvlinkPort(index=at, active=at < 8, signal_bytes_per_s=25e9) for at in range(12))
    two_bridges = verdicts(with_cards(healthy(name="NVIDIA A100 80GB PCIe"), nvlinks=ports))["nvlink-active"]
    assert (two_bridges.verdict, "2 of 3 bridges" in two_bridges.evidence) == ("warn", True)
    dead = tuple(replace(port, active=port.index < 10) for port in ports)
    found = verdicts(with_cards(healthy(name="NVIDIA A100 80GB PCIe"), nvlinks=dead))["nvlink-active"]
    assert (found.verdict, "inactive are 10, 11" in found.evidence) == ("fail", True)


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("NVIDIA GeForce RTX 4090", "GNS", "nothing is broken"),
        ("NVIDIA GeForce RTX 4090", "CNS", "nothing is broken"),  # what newer drivers answer for the same cards
        ("NVIDIA GeForce RTX 3090", "CNS", "bridge"),
        ("NVIDIA RTX 6000 Ada Generation", "CNS", "chipset"),
        ("NVIDIA RTX 6000 Ada Generation", "TNS", "topology"),
        ("NVIDIA GeForce RTX 4090", "DR", "NVreg_RegistryDwords"),
    ],
)
def test_a_refusal_is_explained_by_card_and_status(name, status, said):
    machine = with_pairs(pcie_box(name=name), can_access=None, peer_status={"read": status})
    assert said in verdicts(machine)["peer-access"].fix


def test_a_third_card_beside_a_bridged_pair_is_not_missing_from_a_fabric():
    text = "\tGPU0\tGPU1\tGPU2\nGPU0 X NV4 NODE\nGPU1 NV4 X NODE\nGPU2 NODE NODE X\n"
    assert verdicts(read_pasted(text).machine)["nvlink-fabric-complete"].verdict == "ok"
    lost = "\tGPU0\tGPU1\tGPU2\tGPU3\nGPU0 X NV6 NV6 NODE\nGPU1 NV6 X NV6 NODE\nGPU2 NV6 NV6 X NODE\n"
    assert verdicts(read_pasted(lost).machine)["nvlink-fabric-complete"].verdict == "fail"


def test_a_card_with_fewer_links_than_the_others_shows_in_the_matrix():
    """What `topo -m` printed for one card with two dead links."""
    rows = ["X NV18 NV16 NV18", "NV18 X NV16 NV18", "NV16 NV16 X NV16", "NV18 NV18 NV16 X"]
    text = "\tGPU0\tGPU1\tGPU2\tGPU3\n" + "".join(f"GPU{n} {row}\n" for n, row in enumerate(rows))
    found = verdicts(read_pasted(text).machine)["nvlink-fabric-complete"]
    assert (found.verdict, found.evidence) == ("fail", "card 2: NV16, others NV18")
    uneven_by_design = read_pasted((RECORDED / "dgx1_8x_v100_sxm2.txt").read_text()).machine
    assert verdicts(uneven_by_design)["nvlink-fabric-complete"].verdict == "ok"


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (Machine(), "warn"),
        (Machine(driver=DriverFacts(loaded=False, nvml_error="LIBRARY_NOT_FOUND", cuda_error="NOT_FOUND")), "warn"),
        (Machine(host=HostFacts(nvidia_devices=("0000:01:00.0",)), driver=DriverFacts(loaded=False)), "fail"),
        (Machine(host=HostFacts(nvidia_devices=("0000:01:00.0",)), driver=DriverFacts(loaded=True)), "fail"),
        (Machine(driver=DriverFacts(loaded=True, nvml_error="LIB_RM_VERSION_MISMATCH")), "fail"),
    ],
    ids=["nothing", "no driver", "driver not loaded", "cards hidden", "versions differ"],
)
def test_a_machine_without_a_card_ends_in_a_helpful_verdict(machine, verdict):
    checks = examine(machine)
    assert checks[0].id == "cards"
    assert checks[0].verdict == verdict
    assert checks[0].fix
    assert len(checks) < 10


def test_nothing_seen_of_a_card_is_nothing_claimed():
    """Two cards of which only the existence is known: no check may say that something is wrong."""
    checks = verdicts(Machine(cards=(CardFacts(index=0), CardFacts(index=1))))
    assert {check.verdict for check in checks.values()} == {"ok", "unknown"}
    assert checks["nvlink-active"].verdict == "unknown"
    assert checks["peer-access"].verdict == "unknown"


@pytest.mark.parametrize(
    ("name", "check", "verdict"),
    [
        ("2x_rtx2080ti_wsl2_link1_inactive", "nvlink-active", "fail"),
        ("2x_a100_pcie_no_bridge", "nvlink-active", "warn"),
        ("2x_h100_pcie_3bridges", "nvlink-active", "ok"),
        ("2x_h100_pcie_3bridges", "nvlink-far-ends", "ok"),
        ("2x_rtx3090_nv4", "nvlink-active", "ok"),
        ("2x_rtx5090_p2p_gns", "peer-access", "warn"),
        ("5x_blackwell_mixed_patched_p2p_ok", "copies-arrive", "unknown"),
        ("8x_rtx4090_all_sys", "numa-nodes", "warn"),
        ("2x_rtx3090_sys_dual_socket", "numa-nodes", "unknown"),
        ("8x_h100_sxm5_nvswitch", "numa-nodes", "ok"),
        ("8x_rtxpro6000_pex890xx_dual_epyc", "switch-writes", "warn"),
    ],
)
def test_what_the_doctor_says_to_recorded_texts(name, check, verdict):
    machine = read_pasted((RECORDED / f"{name}.txt").read_text(encoding="utf-8")).machine
    found = verdicts(machine)[check]
    assert found.verdict == verdict
    assert bool(found.fix) == (verdict in ("warn", "fail")) or verdict == "unknown"


@pytest.mark.parametrize(
    ("found", "code"), [(("ok", "unknown"), 0), (("ok", "warn"), 1), (("warn", "fail"), 2), ((), 0)]
)
def test_the_exit_code_is_the_worst_verdict(found, code):
    checks = [replace(examine(Machine())[0], verdict=verdict) for verdict in found]
    assert exit_code(checks) == code
