from itertools import permutations

import pytest

from poolrt.errors import ConfigurationError, DriverError
from poolrt.topology.catalog import link_preset
from poolrt.topology.discover import Sources, discover_cuda, read_everything, read_machine
from poolrt.topology.route import route
from poolrt.topology.sources.files import SystemFiles
from poolrt.topology.sources.nvml import Nvml


@pytest.fixture
def sources(fake_nvml, fake_driver, fake_identity):
    def make(shown=(0, 1, 2, 3), *, identity=True, nvml=True, environment=None, **changes):
        return Sources(
            driver=fake_driver(shown),
            identity=fake_identity(shown) if identity else None,
            nvml=Nvml(fake_nvml()) if nvml else None,
            environment=environment or {},
            **changes,
        )

    return make


def test_cards_are_entered_as_cuda_numbers_them(sources):
    topology = discover_cuda(sources(shown=(3, 1)))
    assert [(card.index, card.device, card.memory_bytes) for card in topology.cards] == [
        (0, "cuda:0", 24003 << 20),
        (1, "cuda:1", 24001 << 20),
    ]
    assert {card.kind for card in topology.cards} == {"cuda"}
    assert topology.cards[0].name == "NVIDIA GeForce RTX 3090"


def test_nvlinks_are_found_under_cuda_visible_devices(sources):
    """Cards 0-2 and 1-3 are bridged; CUDA shows 3, 1, 0 as 0, 1, 2."""
    topology = discover_cuda(sources(shown=(3, 1, 0)))
    assert (topology.link(0, 1).kind, topology.link(0, 1).relation) == ("NVLINK", "NV4")
    assert topology.link(0, 1).bytes_per_s == link_preset("nvlink3x4").bytes_per_s
    assert (topology.link(0, 2).kind, topology.link(0, 2).relation) == ("HOST", "NODE")


@pytest.mark.parametrize(("visible", "joined"), [("3,1", True), ("GPU-dddd,GPU-bbbb", True), ("0,1", False)])
def test_cards_are_told_by_the_variable_where_cuda_names_none(sources, visible, joined):
    topology = discover_cuda(sources(shown=(0, 1), identity=False, environment={"CUDA_VISIBLE_DEVICES": visible}))
    assert (topology.link(0, 1).relation == "NV4") == joined


def test_a_mig_slice_is_refused(sources):
    with pytest.raises(ConfigurationError, match="MIG"):
        discover_cuda(sources(environment={"CUDA_VISIBLE_DEVICES": "MIG-0"}))


def test_slots_give_the_bandwidth_of_pcie(sources, fake_driver):
    """NVML says generation 4 with eight lanes: not the sixteen that a card could have."""
    everywhere = Sources(
        driver=fake_driver(peers=permutations(range(4), 2)), nvml=sources().nvml, identity=sources().identity
    )
    link = discover_cuda(everywhere).link(0, 1)
    assert (link.kind, link.relation) == ("PCIE", "PHB")
    assert link.bytes_per_s == link_preset("pcie4x8").bytes_per_s


def test_without_nvml_sysfs_tells_slots_and_relations(sources, device_tree):
    slot = {"numa_node": "0", "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "4"}
    root = device_tree(
        {
            "pci0000:00/0000:00:01.1/0000:08:00.0/0000:09:00.0/0000:10:00.0": slot,
            "pci0000:00/0000:00:01.1/0000:08:00.0/0000:09:01.0/0000:11:00.0": slot,
            "pci0000:40/0000:40:01.1/0000:12:00.0": slot | {"numa_node": "1"},
        }
    )
    topology = discover_cuda(sources(shown=(0, 1, 2), nvml=False, files=SystemFiles(root)))
    assert (topology.link(0, 1).relation, topology.link(1, 2).relation) == ("PIX", "SYS")
    # The driver grants 0-2 only.
    assert (topology.link(0, 1).kind, topology.link(0, 2).kind) == ("HOST", "PCIE")
    assert topology.link(0, 2).bytes_per_s == link_preset("pcie4x4").bytes_per_s
    cards = read_machine(sources(shown=(0, 1, 2), nvml=False, files=SystemFiles(root))).cards
    assert [card.numa_node for card in cards] == [0, 0, 1]


def test_peer_access_becomes_a_p2p_route_in_that_direction_only(fake_driver):
    peers = {(0, 1), (1, 0), (1, 2)}
    topology = discover_cuda(Sources(driver=fake_driver(shown=(0, 1, 2), peers=peers, name="NVIDIA Example")))
    routes = {(x.source, x.target): route(topology, x.source, x.target).kind for x in topology.links}
    assert len(routes) == 6
    assert {pair for pair, kind in routes.items() if kind == "P2P"} == peers


def test_no_cards_is_an_empty_topology(sources):
    assert len(discover_cuda(sources(shown=()))) == 0


def test_no_driver_is_an_empty_topology(monkeypatch):
    from poolrt import _C

    def missing():
        raise DriverError("there is no libcuda.so.1")

    monkeypatch.setattr(_C, "cuda_driver", missing)
    assert Sources.of_this_machine().driver_error == "NOT_FOUND"
    assert len(discover_cuda()) == 0


def test_nothing_to_ask_is_an_empty_machine():
    machine = read_machine(Sources())
    assert (machine.cards, machine.pairs, machine.unseen) == ((), (), ())


def test_a_driver_that_fails_later_is_not_hidden(fake_driver):
    class Failing(fake_driver):
        def total_memory(self, card):
            raise DriverError("code 999")

    with pytest.raises(DriverError):
        discover_cuda(Sources(driver=Failing()))


def test_for_the_doctor_a_failing_driver_is_a_fact(fake_driver, fake_nvml, system):
    class Failing(fake_driver):
        def total_memory(self, card):
            error = DriverError("launch failed")
            error.name = "CUDA_ERROR_LAUNCH_FAILED"
            raise error

    root = system({"/sys/module/nvidia/version": "550.54.15\n", "/proc/cmdline": "quiet\n"})
    machine = read_everything(
        Sources(driver=Failing(), nvml=Nvml(fake_nvml()), files=SystemFiles(root), environment={"NCCL_DEBUG": "INFO"})
    )
    assert (len(machine.cards), machine.driver.cuda_error) == (4, "CUDA_ERROR_LAUNCH_FAILED")
    # NVML's word about the version counts before the module's, which may have been replaced on disk since.
    assert (machine.driver.version, machine.host.kernel_command_line) == ("550.54.14", "quiet")
    assert machine.host.environment == {"NCCL_DEBUG": "INFO"}


def test_cards_that_cuda_hides_are_still_on_the_machine(sources):
    machine = read_machine(sources(shown=(2,)))
    assert [card.cuda_index for card in machine.cards] == [None, None, 0, None]
    assert len(discover_cuda(sources(shown=(2,)))) == 1
