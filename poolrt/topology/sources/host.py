"""What /proc and /sys tell about the computer around the cards, and about the driver's kernel modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from poolrt.topology.facts import DriverFacts, HostFacts
from poolrt.topology.sources.pci import redirecting_bridges
from poolrt.topology.sources.protocols import FileSource

VARIABLES = re.compile(r"CUDA_\w+|NCCL_\w+|NVIDIA_VISIBLE_DEVICES|POOLRT_\w+")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def read_host(files: FileSource, environment: Mapping[str, str]) -> HostFacts:
    """The computer around the cards."""
    devices = _nvidia_devices(files)
    log = files.kernel_log()
    return HostFacts(
        kernel_command_line=files.text("/proc/cmdline"),
        iommu_group_types=_iommu_group_types(files),
        redirecting_bridges=redirecting_bridges(files, devices),
        virtual_machine=_has_word(files.text("/proc/cpuinfo"), "hypervisor"),
        wsl=_has_word(files.text("/proc/version"), "microsoft"),
        container=any(files.data(path) is not None for path in ("/.dockerenv", "/run/.containerenv")),
        environment={name: value for name, value in environment.items() if VARIABLES.fullmatch(name)},
        shared_memory_bytes=files.room("/dev/shm"),
        locked_memory_bytes=_locked_memory_bytes(files.text("/proc/self/limits")),
        memory_limit_bytes=_memory_limit_bytes(files),
        xid_events=None if log is None else tuple(re.findall(r"NVRM: Xid[^\n]*", log)),
        nvidia_devices=devices,
        root=_is_root(files.text("/proc/self/status")),
    )


def read_modules(files: FileSource) -> DriverFacts:
    """The driver as its kernel modules and processes show it."""
    version = files.text("/sys/module/nvidia/version")
    processes = {files.text(f"/proc/{name}/comm") for name in files.names("/proc") if name.isdecimal()}
    installed = any(files.real(f"{folder}/nv-fabricmanager") for folder in ("/usr/bin", "/usr/local/bin"))
    hmm_disabled = files.text("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm")
    return DriverFacts(
        loaded=bool(version or files.text("/proc/driver/nvidia/version")),
        version=version,
        fabric_manager="running" if "nv-fabricmanage" in processes else "stopped" if installed else None,
        parameters=_parameters(files.text("/proc/driver/nvidia/params")),
        unified_memory_hmm=None if hmm_disabled is None else hmm_disabled in ("N", "0"),
        # The kernel keeps fifteen characters of a process's name.
        multi_process_service=bool(processes & {"nvidia-cuda-mps", "nvidia-cuda-mps-control"[:15]}),
    )


def _nvidia_devices(files: FileSource) -> tuple[str, ...]:
    folder = "/sys/bus/pci/devices"
    return tuple(
        name
        for name in files.names(folder)
        if files.text(f"{folder}/{name}/vendor") == _NVIDIA
        and (files.text(f"{folder}/{name}/class") or "").startswith(_DISPLAY)
    )


def _iommu_group_types(files: FileSource) -> frozenset[str] | None:
    folder = "/sys/kernel/iommu_groups"
    if files.real("/sys/kernel") is None:
        return None
    types = {files.text(f"{folder}/{name}/type") for name in files.names(folder)}
    return frozenset(kind for kind in types if kind)


def _locked_memory_bytes(limits: str | None) -> int | None:
    match = re.search(r"Max locked memory\s+(\d+|unlimited)", limits or "")
    return None if match is None else -1 if match[1] == "unlimited" else int(match[1])


def _memory_limit_bytes(files: FileSource) -> int | None:
    """Control groups of version 2, then of version 1, where a huge number stands for no limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = files.text(path)
        if text is not None and (text == "max" or text.isdecimal()):
            return -1 if text == "max" or int(text) >= 1 << 60 else int(text)
    return None


def _is_root(status: str | None) -> bool | None:
    match = re.search(r"^Uid:\s+\d+\s+(\d+)", status or "", re.MULTILINE)
    return match[1] == "0" if match else None


def _has_word(text: str | None, word: str) -> bool | None:
    return None if text is None else word in text.lower()


def _parameters(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    fields = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in fields}
