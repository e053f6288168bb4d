import ast
import ctypes
from pathlib import Path

import pytest

import poolrt.topology.sources as sources
from poolrt.topology.sources.nvml import Nvml, open_nvml

SOURCES = Path(sources.__file__).parent


def read(library, **options):
    machine = Nvml(library, **options).read()
    assert library.opened == 0
    return machine


def test_cards_are_read(fake_nvml, uuids):
    machine = read(fake_nvml())
    assert [card.uuid for card in machine.cards] == list(uuids)
    card = machine.cards[2]
    assert (card.name, card.bus_id, card.memory_bytes) == ("NVIDIA GeForce RTX 3090", "0000:12:00.0", 24576 << 20)
    assert (card.pcie.maximum_generation, card.pcie.maximum_width, card.bar1_bytes) == (4, 8, 256 << 20)
    assert card.compute_capability == (8, 6)
    assert (machine.driver.version, machine.driver.cuda_version) == ("550.54.14", (12, 4))


def test_links_are_counted_by_what_is_at_their_far_end(fake_nvml):
    machine = read(fake_nvml())
    assert [card.active_links for card in machine.cards] == [4] * 4
    assert machine.cards[0].nvlinks[0].signal_bytes_per_s == 14.062e9
    counts = {(pair.source, pair.target): pair.nvlinks for pair in machine.pairs}
    assert {pair for pair, links in counts.items() if links == 4} == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert set(counts.values()) == {0, 4}
    assert machine.pair(0, 2).relation == "NV4"
    assert (machine.pair(0, 1).relation, machine.pair(0, 3).relation) == ("PHB", "NODE")
    assert machine.pair(0, 2).pcie_relation == "NODE"


def test_a_dead_link_is_not_counted(fake_nvml):
    library = fake_nvml()
    library.dead_links = {(0, 1), (2, 1)}
    machine = read(library)
    assert machine.pair(0, 2).nvlinks == 3
    assert machine.pair(0, 2).relation == "NV3"
    assert [port.index for port in machine.cards[0].nvlinks if not port.active] == [1]


@pytest.mark.parametrize("kind", [2, 255])
def test_links_to_switches_join_all_cards(fake_nvml, kind):
    """A virtual machine that hides its switches says UNKNOWN (255)."""
    library = fake_nvml(links=12, DeviceGetNvLinkRemoteDeviceType=kind, DeviceGetNvLinkRemotePciInfo=None)
    library.partner = dict.fromkeys(range(4), 9)
    assert {pair.nvlinks for pair in read(library).pairs} == {12}


def test_cards_without_nvlink_have_none(fake_nvml):
    machine = read(fake_nvml(bridged=()))
    assert {card.nvlinks for card in machine.cards} == {()}
    assert {pair.nvlinks for pair in machine.pairs} == {0}


def test_peer_status_by_capability(fake_nvml):
    machine = read(fake_nvml())
    assert machine.pair(0, 2).peer_status == dict.fromkeys(["read", "write", "nvlink", "atomics", "pcie"], "OK")
    assert machine.pair(0, 1).peer_access is False
    assert set(machine.pair(0, 1).peer_status.values()) == {"GNS"}


def test_the_host_s_numa_node_comes_from_the_memory_affinity(fake_nvml):
    assert read(fake_nvml(DeviceGetMemoryAffinity=[0b1000, 0])).cards[0].numa_node == 3
    assert read(fake_nvml(DeviceGetMemoryAffinity=[0, 0b10])).cards[0].numa_node == 65
    assert read(fake_nvml()).cards[0].numa_node is None


def test_errors_that_come_while_watching_are_told_from_old_ones(fake_nvml):
    counts = iter(range(10**6))
    machine = read(fake_nvml(DeviceGetNvLinkErrorCounter=lambda *_: next(counts) // 64), watch_s=0.001)
    ports = [port for card in machine.cards for port in card.nvlinks]
    assert any(port.new_errors for port in ports)
    still = read(fake_nvml(DeviceGetNvLinkErrorCounter=7), watch_s=0.001)
    assert {(port.errors, port.new_errors) for card in still.cards for port in card.nvlinks} == {(28, 0)}
    assert {port.new_errors for card in read(fake_nvml()).cards for port in card.nvlinks} == {None}


def test_health_is_read(fake_nvml):
    library = fake_nvml(
        DeviceGetCurrentClocksEventReasons=0x44,
        DeviceGetEnforcedPowerLimit=250_000,
        DeviceGetPowerManagementDefaultLimit=350_000,
        DeviceGetTotalEccErrors=3,
        DeviceGetRemappedRows=(0, 0, 1, 0),
        DeviceGetMigMode=[0, 1],
        DeviceGetComputeMode=3,
        DeviceGetVirtualizationMode=1,
        SystemGetNvlinkBwMode=3,
    )
    library.fields[230] = 3
    machine = read(library)
    card = machine.cards[0]
    assert card.health.throttle_reasons == ("hardware thermal slowdown", "power cap")
    assert (card.health.power_limit_watts, card.health.default_power_limit_watts) == (250.0, 350.0)
    assert (card.health.uncorrected_ecc_errors, card.health.rows_to_remap) == (3, True)
    assert card.health.recovery_action == "DRAIN_P2P"
    assert (card.mig, card.compute_mode, card.virtualization) == (True, "exclusive process", "passthrough")
    assert machine.driver.nvlink_mode == "HALF"


class FabricInfo(ctypes.Structure):
    _fields_ = (("status", ctypes.c_uint), ("state", ctypes.c_uint))


@pytest.mark.parametrize(
    ("state", "word"), list(enumerate(["NOT_SUPPORTED", "NOT_STARTED", "IN_PROGRESS", "COMPLETED"]))
)
def test_a_fabric_is_read_into_a_structure_of_ours(fake_nvml, state, word):
    def fill(handle, pointer):
        pointer._obj.state, pointer._obj.status = state, 5
        return 0

    library = fake_nvml(DeviceGetGpuFabricInfoV=fill)
    assert read(library).cards[0].fabric is None  # a package that lacks the structure
    library.c_nvmlGpuFabricInfoV_t = FabricInfo
    assert (read(library).cards[0].fabric.state, read(library).cards[0].fabric.status) == (word, 5)


@pytest.mark.parametrize(
    ("code", "word"), [(9, "DRIVER_NOT_LOADED"), (18, "LIB_RM_VERSION_MISMATCH"), (12345, "UNKNOWN")]
)
def test_a_driver_that_does_not_answer_is_named(fake_nvml, code, word):
    machine = read(fake_nvml(Init=code))
    assert machine.cards == ()
    assert machine.driver.nvml_error == word


def test_what_may_not_be_seen_is_said_once(fake_nvml):
    library = fake_nvml()

    def refuse(*_):
        raise library.NVMLError(4)

    library.answers["DeviceGetPcieReplayCounter"] = refuse
    machine = read(library)
    assert machine.unseen == ("NVML answers NO_PERMISSION to DeviceGetPcieReplayCounter",)
    assert [card.pcie.replays for card in machine.cards] == [None] * 4


def test_a_lost_card_does_not_hide_the_others(fake_nvml):
    library = fake_nvml()

    def lost(index):
        if index == 1:
            raise library.NVMLError(15)
        return index

    library.answers["DeviceGetHandleByIndex"] = lost
    machine = read(library)
    assert [card.index for card in machine.cards] == [0, 2, 3]
    assert machine.unseen == ("NVML answers GPU_IS_LOST to DeviceGetHandleByIndex",)


def names_asked_for():
    """Every function, structure and constant of the package that the readers name; some as beginnings of names."""
    marks = ("NVML_FI_", "nvmlClocks", "NVML_NVLINK", "c_nvml")
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ask":
                yield f"nvml{node.args[0].value}"
            elif isinstance(node, ast.Constant) and str(node.value).startswith(marks) and node.value.isidentifier():
                yield node.value


def test_the_package_has_every_name_that_is_asked_for():
    library = pytest.importorskip("pynvml")
    names = set(names_asked_for())
    assert len(names) > 30
    assert {name for name in names if not any(there.startswith(name) for there in dir(library))} == set()


def test_without_a_driver_the_real_package_answers_an_empty_machine():
    library = open_nvml()
    if library is None:
        pytest.skip("nvidia-ml-py is not installed")
    machine = Nvml(library).read()
    assert machine.cards or machine.driver.nvml_error or machine.driver.loaded
