"""NVML through nvidia-ml-py: every card of the machine, also those that CUDA_VISIBLE_DEVICES hides."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

from poolrt.topology.facts import (
    CardFacts,
    DriverFacts,
    FabricFacts,
    HealthFacts,
    Machine,
    NvlinkPort,
    PcieFacts,
)
from poolrt.topology.sources.asking import Asker
from poolrt.topology.sources.nvml_links import link_errors, read_pairs, read_ports

_BUSY_PERCENT = 10
"""a card with less work than this is taken as idle: its PCIe link may have gone to sleep"""

_THROTTLE_REASONS = (
    ("nvmlClocksEventReasonSwThermalSlowdown", "thermal slowdown"),
    ("nvmlClocksEventReasonHwThermalSlowdown", "hardware thermal slowdown"),
    ("nvmlClocksEventReasonHwSlowdown", "hardware slowdown"),
    ("nvmlClocksEventReasonHwPowerBrakeSlowdown", "power brake"),
    ("nvmlClocksEventReasonSwPowerCap", "power cap"),
)
_RECOVERY_ACTIONS = ("NONE", "GPU_RESET", "NODE_REBOOT", "DRAIN_P2P", "DRAIN_AND_RESET")
_FABRIC_STATES = ("NOT_SUPPORTED", "NOT_STARTED", "IN_PROGRESS", "COMPLETED")
_LINK_MODES = ("FULL", "OFF", "MIN", "HALF", "3QUARTER")
_VIRTUALIZATION = {0: "none", 1: "passthrough", 2: "vgpu", 3: "vgpu", 4: "vgpu"}
_COMPUTE_MODES = {0: "default", 2: "prohibited", 1: "exclusive process", 3: "exclusive process"}


def open_nvml() -> ModuleType | None:
    """The package nvidia-ml-py; None where it is not installed. It needs no driver to be imported."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


class Nvml:
    """An NvmlSource over the package nvidia-ml-py, or over anything that has its functions.

    Args:
        library: the module pynvml.
        watch_s: how long to watch error counters; 0 reads them once.
    """

    def __init__(self, library: Any, watch_s: float = 0.0) -> None:
        self._library = library
        self._watch_s = watch_s

    def read(self) -> Machine:
        """Cards, pairs and driver. Without a driver an empty machine whose driver facts hold the reason."""
        ask = Asker(self._library)
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            return Machine(driver=DriverFacts(nvml_error=ask.name_of(error)))
        try:
            return self._read(ask)
        finally:
            self._library.nvmlShutdown()

    def _read(self, ask: Asker) -> Machine:
        handles = [ask("DeviceGetHandleByIndex", index) for index in range(ask("DeviceGetCount") or 0)]
        there = {index: handle for index, handle in enumerate(handles) if handle is not None}
        cards = tuple(_card(ask, index, handle) for index, handle in there.items())
        if self._watch_s:
            time.sleep(self._watch_s)
            cards = tuple(replace(card, nvlinks=_watched(ask, there[card.index], card.nvlinks)) for card in cards)
        return Machine(
            cards=cards,
            pairs=read_pairs(ask, there, cards),
            driver=_driver(ask),
            unseen=tuple(ask.unseen),
        )


def _card(ask: Asker, index: int, handle: Any) -> CardFacts:
    memory, bar1 = ask("DeviceGetMemoryInfo", handle), ask("DeviceGetBAR1MemoryInfo", handle)
    mig = ask("DeviceGetMigMode", handle)
    capability = ask("DeviceGetCudaComputeCapability", handle)
    return CardFacts(
        index=index,
        name=ask("DeviceGetName", handle),
        uuid=ask("DeviceGetUUID", handle),
        bus_id=_bus_id(ask("DeviceGetPciInfo", handle)),
        memory_bytes=int(memory.total) if memory else None,
        compute_capability=tuple(capability) if capability else None,
        numa_node=_numa_node(ask, handle),
        nvlinks=read_ports(ask, handle),
        pcie=_pcie(ask, handle),
        health=_health(ask, handle),
        fabric=_fabric(ask, handle),
        mig=None if mig is None else any(mig),
        bar1_bytes=int(bar1.bar1Total) if bar1 else None,
        virtualization=_VIRTUALIZATION.get(ask("DeviceGetVirtualizationMode", handle)),  # type: ignore[arg-type]
        compute_mode=_COMPUTE_MODES.get(ask("DeviceGetComputeMode", handle)),  # type: ignore[arg-type]
    )


def _bus_id(pci: Any) -> str | None:
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0" if pci else None


def _numa_node(ask: Asker, handle: Any) -> int | None:
    """The lowest NUMA node in the card's memory affinity (scope 0: nearest)."""
    words = ask("DeviceGetMemoryAffinity", handle, 16, 0)
    bits = ctypes.sizeof(ctypes.c_ulonglong) * 8
    for position, word in enumerate(words or ()):
        if word:
            return position * bits + (word & -word).bit_length() - 1
    return None


def _pcie(ask: Asker, handle: Any) -> PcieFacts:
    load = ask("DeviceGetUtilizationRates", handle)
    return PcieFacts(
        generation=ask("DeviceGetCurrPcieLinkGeneration", handle),
        width=ask("DeviceGetCurrPcieLinkWidth", handle),
        maximum_generation=ask("DeviceGetMaxPcieLinkGeneration", handle),
        maximum_width=ask("DeviceGetMaxPcieLinkWidth", handle),
        card_generation=ask("DeviceGetGpuMaxPcieLinkGeneration", handle),
        working=None if load is None else load.gpu >= _BUSY_PERCENT,
        replays=ask("DeviceGetPcieReplayCounter", handle),
    )


def _health(ask: Asker, handle: Any) -> HealthFacts:
    reasons = ask("DeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # the name of older drivers
        reasons = ask("DeviceGetCurrentClocksThrottleReasons", handle)
    limit = ask("DeviceGetEnforcedPowerLimit", handle)
    default = ask("DeviceGetPowerManagementDefaultLimit", handle)
    remapped = ask("DeviceGetRemappedRows", handle)
    (action,) = ask.fields(handle, ("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 0))
    return HealthFacts(
        throttle_reasons=None if reasons is None else _throttle_reasons(ask, reasons),
        power_limit_watts=None if limit is None else limit / 1e3,
        default_power_limit_watts=None if default is None else default / 1e3,
        uncorrected_ecc_errors=ask("DeviceGetTotalEccErrors", handle, 1, 0),  # uncorrected, since the last boot
        rows_to_remap=None if remapped is None else bool(remapped[2] or remapped[3]),
        recovery_action=_word(_RECOVERY_ACTIONS, action),
    )


def _throttle_reasons(ask: Asker, mask: int) -> tuple[str, ...]:
    return tuple(text for name, text in _THROTTLE_REASONS if mask & (ask.constant(name) or 0))


def _fabric(ask: Asker, handle: Any) -> FabricFacts | None:
    structure = ask.make("c_nvmlGpuFabricInfoV_t")
    if structure is None or ask("DeviceGetGpuFabricInfoV", handle, ctypes.byref(structure)) is None:
        return None
    state = _word(_FABRIC_STATES, structure.state)
    return FabricFacts(state=state, status=structure.status) if state else None  # type: ignore[arg-type]


def _driver(ask: Asker) -> DriverFacts:
    cuda = ask("SystemGetCudaDriverVersion_v2")
    confidential = ask("SystemGetConfComputeState")
    return DriverFacts(
        loaded=True,
        version=ask("SystemGetDriverVersion"),
        cuda_version=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
        nvlink_mode=_word(_LINK_MODES, ask("SystemGetNvlinkBwMode")),
        confidential_computing=None if confidential is None else bool(confidential.ccFeature),
    )


def _watched(ask: Asker, handle: Any, ports: tuple[NvlinkPort, ...] | None) -> tuple[NvlinkPort, ...] | None:
    """The ports with the errors that came since they were read."""
    return ports and tuple(
        replace(port, new_errors=_grown(port, link_errors(ask, handle, port.index))) for port in ports
    )


def _grown(port: NvlinkPort, errors: int | None) -> int | None:
    return None if errors is None or port.errors is None else errors - port.errors


def _word(words: tuple[str, ...], number: int | None) -> str | None:
    return words[number] if number is not None and 0 <= number < len(words) else None
