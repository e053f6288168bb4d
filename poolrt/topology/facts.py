"""What was seen of a machine, as values: by asking it, in text that a user pasted, or in a recorded box.

    Machine
      cards   CardFacts: one per GPU, with its NvlinkPorts
      pairs   PairFacts: one per ordered pair of which anything is known
      driver  DriverFacts
      host    HostFacts
      unseen  sentences: what could not be read, and why

None says "not seen" everywhere: a topology and a verdict are drawn from what was seen and from nothing else. Cards are
numbered as nvidia-smi numbers them, which is the order of their PCI addresses and need not be CUDA's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RemoteKind = Literal["GPU", "SWITCH", "OTHER", "UNKNOWN"]
"""what sits at the far end of an NVLink; a virtual machine that hides its switches shows UNKNOWN"""

NO_PEER_ACCESS = ("CNS", "GNS", "TNS", "NS", "DR")
"""peer statuses that are a refusal: chipset, GPU or topology not supported, not supported, disabled by a driver key"""


@dataclass(frozen=True, kw_only=True)
class NvlinkPort:
    """One NVLink of one card."""

    index: int
    active: bool
    signal_bytes_per_s: float | None = None
    """what `nvidia-smi nvlink -s` prints, in one direction: the signalling rate, up to 6 % above the payload rate"""
    remote: RemoteKind | None = None
    remote_bus_id: str | None = None
    errors: int | None = None
    """replays, recoveries, CRC and ECC errors since the driver was loaded"""
    new_errors: int | None = None
    """those of them that came while we watched"""


@dataclass(frozen=True, kw_only=True)
class PcieFacts:
    """How a card sits in its slot. The current values mean something only while the card works."""

    generation: int | None = None
    width: int | None = None
    """lanes in use now"""
    maximum_generation: int | None = None
    """the best that card and slot can do together"""
    maximum_width: int | None = None
    card_generation: int | None = None
    """the best that the card could do in any slot"""
    working: bool | None = None
    """whether the card was at work when the current values were read"""
    replays: int | None = None
    fatal_errors: int | None = None
    """uncorrectable errors counted by the kernel (aer_dev_fatal and aer_dev_nonfatal)"""


@dataclass(frozen=True, kw_only=True)
class HealthFacts:
    """What a card says about its own state."""

    throttle_reasons: tuple[str, ...] | None = None
    """why its clocks are low now: "thermal slowdown", "power brake", "power cap"; empty if nothing holds them down"""
    power_limit_watts: float | None = None
    default_power_limit_watts: float | None = None
    uncorrected_ecc_errors: int | None = None
    rows_to_remap: bool | None = None
    """whether memory rows wait to be replaced, or replacing one has failed"""
    recovery_action: str | None = None
    """what the driver asks for: "NONE", "GPU_RESET", "DRAIN_P2P", ..."""


@dataclass(frozen=True, kw_only=True)
class FabricFacts:
    """A card's part in an NVSwitch fabric."""

    state: Literal["NOT_SUPPORTED", "NOT_STARTED", "IN_PROGRESS", "COMPLETED"]
    status: int = 0
    """the NVML code with which joining the fabric ended; 0 is success"""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What was seen of one GPU."""

    index: int
    """nvidia-smi's number"""
    name: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    """PCI address as sysfs writes it: 0000:c2:00.0"""
    cuda_index: int | None = None
    """CUDA's number in this process; None if CUDA does not show it or was not asked"""
    memory_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    numa_node: int | None = None
    """the host's NUMA node that the card hangs on"""
    cpu_affinity: str | None = None
    """host cores near the card: "0-31,64-95" """
    nvlinks: tuple[NvlinkPort, ...] | None = None
    """its NVLinks; empty if it has none or none is up"""
    pcie: PcieFacts = PcieFacts()
    health: HealthFacts = HealthFacts()
    fabric: FabricFacts | None = None
    mig: bool | None = None
    """whether it is cut into MIG slices, now or after the next reset"""
    bar1_bytes: int | None = None
    """the window through which others on the PCIe bus reach its memory"""
    virtualization: Literal["none", "passthrough", "vgpu"] | None = None
    compute_mode: Literal["default", "exclusive process", "prohibited"] | None = None
    mapped_memory: bool | None = None
    """whether CUDA can map its memory page by page (cuMemCreate, cuMemMap)"""

    @property
    def active_links(self) -> int | None:
        """NVLinks that are up; None if they were not seen."""
        return None if self.nvlinks is None else sum(port.active for port in self.nvlinks)


@dataclass(frozen=True, kw_only=True)
class CopyProof:
    """What a copy with known content showed: the only proof that a route works."""

    nbytes: int
    wrong_nbytes: int
    """bytes that did not read back as they were written"""
    nvlink_nbytes: int | None = None
    """by how much the NVLink byte counters of the source moved"""
    failure: str | None = None
    """why nothing arrived that could be read: the copy's error, or that it did not end"""


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """What was seen of the way from card `source` to card `target` (nvidia-smi's numbers)."""

    source: int
    target: int
    relation: str | None = None
    """as `nvidia-smi topo -m` prints it: NV4, PIX, PXB, PHB, NODE, SYS"""
    pcie_relation: str | None = None
    """the relation over PCIe where NVLink hides it in `relation`"""
    nvlinks: int | None = None
    """active NVLinks that lead there, counted link by link"""
    peer_status: Mapping[str, str] = field(default_factory=dict)
    """capability ("read", "write", "nvlink", "atomics", "pcie") -> what the driver says: "OK", "GNS", ..."""
    can_access: bool | None = None
    """what CUDA answers when asked whether source may touch the target's memory"""
    measured_bytes_per_s: float | None = None
    """what one copy reached"""
    proof: CopyProof | None = None

    @property
    def peer_access(self) -> bool | None:
        """Whether the driver grants peer access; None if nobody asked it. CUDA's word counts before NVML's."""
        if self.can_access is not None:
            return self.can_access
        statuses = [self.peer_status[name] for name in ("read", "write") if name in self.peer_status]
        if any(status in NO_PEER_ACCESS for status in statuses):
            return False
        return True if "OK" in statuses else None


@dataclass(frozen=True, kw_only=True)
class DriverFacts:
    """The NVIDIA driver and what it says about the whole box."""

    loaded: bool | None = None
    version: str | None = None
    """of the kernel driver: "550.54.14" """
    cuda_version: tuple[int, int] | None = None
    """the newest CUDA that it runs"""
    toolkit_version: tuple[int, int] | None = None
    """the CUDA that torch was built with"""
    nvml_error: str | None = None
    """why NVML does not answer, in its own word: LIB_RM_VERSION_MISMATCH, ..."""
    cuda_error: str | None = None
    """why CUDA does not answer: SYSTEM_NOT_READY, ..."""
    nvlink_mode: str | None = None
    """FULL, or what a bandwidth setting left of it: OFF, MIN, HALF, 3QUARTER"""
    confidential_computing: bool | None = None
    fabric_manager: Literal["running", "stopped"] | None = None
    """the NVIDIA fabric manager; None if it is not installed, or not seen from within a container"""
    parameters: Mapping[str, str] | None = None
    """of the kernel module, from /proc/driver/nvidia/params"""
    unified_memory_hmm: bool | None = None
    """whether nvidia_uvm manages ordinary process memory too (HMM)"""
    multi_process_service: bool | None = None


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The computer around the cards."""

    kernel_command_line: str | None = None
    iommu_group_types: frozenset[str] | None = None
    """of all IOMMU groups: "identity" passes addresses through, "DMA" and "DMA-FQ" translate; empty if there is none"""
    redirecting_bridges: tuple[str, ...] | None = None
    """PCI bridges above a card that send peer traffic up to the root (ACS redirect); needs root to be seen"""
    virtual_machine: bool | None = None
    wsl: bool | None = None
    container: bool | None = None
    environment: Mapping[str, str] | None = None
    """variables that change what CUDA and NCCL do"""
    shared_memory_bytes: int | None = None
    """size of /dev/shm"""
    locked_memory_bytes: int | None = None
    """limit of memory that a process may lock; -1 is no limit"""
    memory_limit_bytes: int | None = None
    """what the control group allows; -1 is no limit"""
    xid_events: tuple[str, ...] | None = None
    """the driver's error events in the kernel log"""
    nvidia_devices: tuple[str, ...] | None = None
    """PCI addresses of NVIDIA display controllers, whether or not a driver has them"""
    root: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that was seen of one box."""

    cards: tuple[CardFacts, ...] = ()
    """in the order of their numbers, which may have gaps"""
    pairs: tuple[PairFacts, ...] = ()
    driver: DriverFacts = DriverFacts()
    host: HostFacts = HostFacts()
    unseen: tuple[str, ...] = ()
    """what could not be read, and why; one sentence each"""

    def pair(self, source: int, target: int) -> PairFacts:
        """What was seen of the way between two cards; empty facts if nothing."""
        found = (pair for pair in self.pairs if (pair.source, pair.target) == (source, target))
        return next(found, PairFacts(source=source, target=target))
