import struct

import pytest

from poolrt.topology.facts import CardFacts, PcieFacts
from poolrt.topology.sources.files import SystemFiles
from poolrt.topology.sources.host import read_host, read_modules
from poolrt.topology.sources.pci import device_path, redirecting_bridges, with_slot

DISPLAY = {"vendor": "0x10de\n", "class": "0x030000\n"}


def host_of(root, environment=None):
    return read_host(SystemFiles(root), environment or {})


def test_an_empty_system_is_unseen_not_an_error(tmp_path):
    host = host_of(tmp_path)
    assert (host.iommu_group_types, host.wsl, host.virtual_machine, host.root) == (None, None, None, None)
    assert (host.nvidia_devices, host.shared_memory_bytes, host.memory_limit_bytes) == ((), None, None)
    assert host.xid_events is None
    assert read_modules(SystemFiles(tmp_path)).loaded is False


@pytest.mark.parametrize(
    ("files", "types"),
    [
        ({"/sys/kernel/x": ""}, frozenset()),
        ({"/sys/kernel/iommu_groups/0/type": "identity\n"}, {"identity"}),
        ({"/sys/kernel/iommu_groups/0/type": "DMA\n", "/sys/kernel/iommu_groups/1/type": "DMA-FQ"}, {"DMA", "DMA-FQ"}),
    ],
)
def test_iommu_groups(system, files, types):
    assert host_of(system(files)).iommu_group_types == types


@pytest.mark.parametrize(
    ("files", "nbytes"),
    [
        ({"/sys/fs/cgroup/memory.max": "max\n"}, -1),
        ({"/sys/fs/cgroup/memory.max": "4096\n"}, 4096),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, -1),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "8192"}, 8192),
    ],
)
def test_the_control_group_s_limit(system, files, nbytes):
    assert host_of(system(files)).memory_limit_bytes == nbytes


@pytest.mark.parametrize(("limit", "nbytes"), [("65536", 65536), ("unlimited", -1)])
def test_the_limit_of_locked_memory(system, limit, nbytes):
    text = f"Limit      Soft Limit   Hard Limit   Units\nMax locked memory         {limit}        {limit}      bytes\n"
    assert host_of(system({"/proc/self/limits": text})).locked_memory_bytes == nbytes


def test_what_kind_of_machine(system):
    root = system(
        {
            "/proc/cpuinfo": "flags : fpu hypervisor sse\n",
            "/proc/version": "Linux version 5.15.90.1-microsoft-standard-WSL2",
            "/proc/cmdline": "quiet iommu=pt",
            "/proc/self/status": "Name: x\nUid:\t1000\t0\t0\t0\n",
            "/.dockerenv": "",
        }
    )
    host = host_of(root)
    assert (host.virtual_machine, host.wsl, host.container, host.root) == (True, True, True, True)
    assert host.kernel_command_line == "quiet iommu=pt"


def test_only_variables_that_matter_are_kept(tmp_path):
    environment = {"NCCL_P2P_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "0", "SECRET_TOKEN": "x", "PATH": "/bin"}
    assert set(host_of(tmp_path, environment).environment) == {"NCCL_P2P_DISABLE", "CUDA_VISIBLE_DEVICES"}


def test_kernel_modules_and_processes(system):
    root = system(
        {
            "/sys/module/nvidia/version": "550.54.14\n",
            "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm": "N\n",
            "/proc/driver/nvidia/params": 'RegistryDwords: "RMNvLinkEnable=0x0"\nEnableMSI: 1\n',
            "/proc/7/comm": "nv-fabricmanage\n",
            "/proc/8/comm": "nvidia-cuda-mps\n",
        }
    )
    driver = read_modules(SystemFiles(root))
    assert (driver.loaded, driver.version, driver.unified_memory_hmm) == (True, "550.54.14", True)
    assert (driver.fabric_manager, driver.multi_process_service) == ("running", True)
    assert driver.parameters == {"RegistryDwords": '"RMNvLinkEnable=0x0"', "EnableMSI": "1"}
    stopped = read_modules(SystemFiles(system({"/usr/bin/nv-fabricmanager": "", "/proc/7/comm": "bash\n"})))
    assert stopped.fabric_manager == "stopped"


SLOT = {
    "numa_node": "1\n",
    "local_cpulist": "8-15\n",
    "max_link_speed": "16.0 GT/s PCIe\n",
    "max_link_width": "16\n",
    "current_link_speed": "2.5 GT/s PCIe\n",
    "current_link_width": "8\n",
    "aer_dev_fatal": "Undefined 0\nTOTAL_ERR_FATAL 2\n",
    "aer_dev_nonfatal": "TOTAL_ERR_NONFATAL 1\n",
}


def test_the_slot_of_a_card(device_tree):
    files = SystemFiles(device_tree({"pci0000:40/0000:40:01.1/0000:41:00.0": {**DISPLAY, **SLOT}}))
    card = with_slot(files, CardFacts(index=0, bus_id="0000:41:00.0"))
    assert (card.numa_node, card.cpu_affinity) == (1, "8-15")
    assert card.pcie == PcieFacts(generation=1, width=8, maximum_generation=4, maximum_width=16, fatal_errors=3)
    assert device_path(files, "0000:41:00.0") == ("pci0000:40", "0000:40:01.1", "0000:41:00.0")
    assert read_host(files, {}).nvidia_devices == ("0000:41:00.0",)


def test_what_nvml_said_of_a_slot_counts_before(device_tree):
    files = SystemFiles(device_tree({"pci0000:40/0000:40:01.1/0000:41:00.0": SLOT}))
    told = CardFacts(index=0, bus_id="0000:41:00.0", numa_node=0, pcie=PcieFacts(maximum_generation=3))
    card = with_slot(files, told)
    assert (card.numa_node, card.pcie.maximum_generation, card.pcie.maximum_width) == (0, 3, 16)
    assert with_slot(files, CardFacts(index=0, bus_id="0000:99:00.0")).pcie == PcieFacts()


def test_a_machine_without_numa_says_minus_one(device_tree):
    files = SystemFiles(device_tree({"pci0000:40/0000:40:01.1/0000:41:00.0": {"numa_node": "-1\n"}}))
    assert with_slot(files, CardFacts(index=0, bus_id="0000:41:00.0")).numa_node is None


def configuration_space(control, nbytes=4096):
    """Extended capabilities: AER (0x0001) at 0x100, then ACS (0x000d) at 0x148 with this control register."""
    space = bytearray(nbytes)
    if nbytes > 0x148:
        struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x148 << 20)
        struct.pack_into("<I", space, 0x148, 0x000D | 1 << 16)
        struct.pack_into("<H", space, 0x148 + 6, control)
    return bytes(space)


@pytest.mark.parametrize(
    ("control", "nbytes", "bridges"),
    [
        (0b0001100, 4096, ("0000:40:01.1",)),
        (0b0000100, 4096, ("0000:40:01.1",)),
        (0b1010001, 4096, ()),
        (0b0001100, 64, None),  # all that a user who is not root may read
    ],
)
def test_bridges_that_redirect(device_tree, control, nbytes, bridges):
    root = device_tree(
        {
            "pci0000:40/0000:40:01.1/0000:41:00.0": DISPLAY,
            "pci0000:40/0000:40:01.1": {"config": configuration_space(control, nbytes)},
        }
    )
    assert redirecting_bridges(SystemFiles(root), ["0000:41:00.0"]) == bridges


def test_a_capability_list_that_runs_in_a_circle_ends(device_tree):
    space = bytearray(4096)
    struct.pack_into("<I", space, 0x100, 0x0001 | 0x100 << 20)
    root = device_tree(
        {"pci0000:40/0000:40:01.1/0000:41:00.0": DISPLAY, "pci0000:40/0000:40:01.1": {"config": bytes(space)}}
    )
    assert redirecting_bridges(SystemFiles(root), ["0000:41:00.0"]) == ()


def test_the_kernel_log_is_read_where_it_may_be(system):
    root = system({"/dev/kmsg": "6,1,2,-;NVRM: Xid (PCI:0000:41:00): 74, pid=1, NVLink error\n6,2,3,-;other\n"})
    assert host_of(root).xid_events == ("NVRM: Xid (PCI:0000:41:00): 74, pid=1, NVLink error",)
    assert host_of(root).shared_memory_bytes is None
