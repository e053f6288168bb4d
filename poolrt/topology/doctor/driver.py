"""The driver and what stands between it and the cards: virtual machines, MIG, hidden cards, the fabric manager."""

from __future__ import annotations

from poolrt.topology.assemble import nvlink_count
from poolrt.topology.doctor.check import Check, fail, label, listed, ok, unknown, warn
from poolrt.topology.facts import Machine
from poolrt.topology.visible import names_mig_slice

_VIRTUAL = 'virtual cards work everywhere: poolrt.virtual(cards=2, memory="4GiB")'
_MISMATCHED = ("LIB_RM_VERSION_MISMATCH", "SYSTEM_DRIVER_MISMATCH", "INSUFFICIENT_DRIVER",
               "COMPAT_NOT_SUPPORTED_ON_DEVICE")  # fmt: skip
_BROKEN_DRIVER = "545."
"""peer access was broken in this series: https://github.com/pytorch/pytorch/issues/119638"""


def cards_found(machine: Machine) -> Check:
    """Whether there is anything to look at."""
    name = "cards"
    if machine.cards:
        return ok(name, listed((label(card) for card in machine.cards), most=8))
    devices = machine.host.nvidia_devices
    if devices and not machine.driver.loaded:
        return fail(
            name,
            f"NVIDIA cards at {listed(devices)}, but no driver is loaded",
            "install the NVIDIA driver, or load it (modprobe nvidia), then look at `nvidia-smi`",
        )
    if machine.driver.nvml_error in _MISMATCHED:
        return fail(name, f"the driver does not answer: {machine.driver.nvml_error}", "restart the machine")
    if devices or machine.driver.loaded:
        return fail(
            name,
            f"the driver is loaded, but shows no card (NVML: {machine.driver.nvml_error}, CUDA: "
            f"{machine.driver.cuda_error})",
            "look for Xid and NVRM in the kernel log; in a container, start it with --gpus all",
        )
    return warn(
        name, "no NVIDIA card and no driver on this machine", f"if there should be one, look at lspci; {_VIRTUAL}"
    )


def driver_fits(machine: Machine) -> Check:
    """Number 29: driver, its library and the CUDA of torch do not fit each other."""
    name = "driver-version"
    driver = machine.driver
    mismatch = [error for error in (driver.nvml_error, driver.cuda_error) if error and error.endswith(_MISMATCHED)]
    if mismatch:
        return fail(
            name, listed(mismatch), "restart after a driver update; if it stays, install one driver version only"
        )
    if machine.cards and _cuda_is_silent(machine):
        evidence = f"CUDA does not answer: {driver.cuda_error}"
        return fail(name, evidence, "look at `nvidia-smi` and the kernel log, then restart")
    if driver.version is None:
        return unknown(name, "the version of the driver was not seen", "run `nvidia-smi`")
    if driver.version.startswith(_BROKEN_DRIVER):
        return warn(name, f"driver {driver.version}: peer copies were broken in this series", "install 550 or newer")
    if driver.toolkit_version and driver.cuda_version and driver.toolkit_version[0] > driver.cuda_version[0]:
        return fail(
            name,
            f"torch is built for CUDA {_dotted(driver.toolkit_version)}, driver {driver.version} runs up to "
            f"{_dotted(driver.cuda_version)}",
            f"install a newer driver, or torch for CUDA {driver.cuda_version[0]}",
        )
    runs = f", runs CUDA up to {_dotted(driver.cuda_version)}" if driver.cuda_version else ""
    return ok(name, f"driver {driver.version}{runs}")


def fabric_ready(machine: Machine) -> Check:
    """Number 9: NVSwitches without a fabric manager; every CUDA call then answers SYSTEM_NOT_READY."""
    name = "fabric-manager"
    fix = "install the fabric manager of the driver's version, then systemctl enable --now nvidia-fabricmanager"
    joining = [(card, card.fabric) for card in machine.cards if card.fabric and card.fabric.state != "NOT_SUPPORTED"]
    late = [
        f"{label(card)}: {fabric.state}, status {fabric.status}"
        for card, fabric in joining
        if fabric.state != "COMPLETED" or fabric.status
    ]
    if late or (machine.driver.cuda_error or "").endswith("SYSTEM_NOT_READY"):
        return fail(name, listed([*late, *([machine.driver.cuda_error] if machine.driver.cuda_error else [])]), fix)
    switched = any(port.remote == "SWITCH" for card in machine.cards for port in card.nvlinks or ())
    if switched and machine.driver.fabric_manager == "stopped":
        return fail(name, "there are NVSwitches, and the fabric manager does not run", fix)
    if any(card.fabric for card in machine.cards):
        return ok(name, "all cards have joined their fabric, or have none")
    if any(card.nvlinks is None for card in machine.cards):
        return unknown(name, "neither switches nor the state of a fabric were seen")
    return ok(name, "no NVSwitch here" if not switched else "switches, and nothing that complains")


def no_mig(machine: Machine) -> Check:
    """Number 11: cards cut into MIG slices, which cannot reach each other."""
    name = "mig"
    cut = [label(card) for card in machine.cards if card.mig]
    if cut:
        return fail(name, f"MIG is on: {listed(cut)}", "nvidia-smi -i N -mig 0, with no process on the card")
    if all(card.mig is None for card in machine.cards) and machine.driver.version is None:
        return unknown(name, "the MIG mode was not seen", "run `nvidia-smi`")
    return ok(name, "no card is cut into slices")


def all_visible(machine: Machine) -> Check:
    """Number 12: cards that CUDA_VISIBLE_DEVICES hides or numbers otherwise than nvidia-smi does."""
    name = "visible-devices"
    if machine.host.environment is None:
        return unknown(name, "the environment was not seen")
    value = machine.host.environment.get("CUDA_VISIBLE_DEVICES")
    shown = [
        card.index for card in sorted(machine.cards, key=lambda x: x.cuda_index or 0) if card.cuda_index is not None
    ]
    if names_mig_slice(value):
        return fail(
            name, f"CUDA_VISIBLE_DEVICES={value} names a MIG slice", "name whole cards, after nvidia-smi -mig 0"
        )
    cut_off = [
        f"card {pair.target}, bridged to card {pair.source}"
        for pair in machine.pairs
        if nvlink_count(pair) and pair.source in shown and pair.target not in shown
    ]
    if shown and cut_off:
        return warn(
            name,
            f"CUDA_VISIBLE_DEVICES={value} hides {listed(cut_off)}",
            "name cards that are joined by NVLink together",
        )
    if shown != sorted(shown):
        return warn(
            name,
            f"CUDA numbers the cards {shown}, nvidia-smi in rising order",
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID so that both number them alike",
        )
    return ok(name, f"CUDA shows {len(shown)} of {len(machine.cards)} cards" + (f": {value}" if value else ""))


def on_bare_metal(machine: Machine) -> Check:
    """Number 8: virtual machines and vGPU, where peer access is refused, or granted and wrong."""
    name = "virtual-machine"
    modes = {card.virtualization for card in machine.cards} - {None}
    if "vgpu" in modes:
        return warn(
            name,
            "the cards are vGPUs",
            "peer access needs whole, time-sliced vGPUs with NVLink; otherwise pass the cards through",
        )
    if "passthrough" in modes or machine.host.virtual_machine:
        return warn(
            name,
            "cards passed through to a virtual machine" if "passthrough" in modes else "a virtual machine",
            "give the cards one GPUDirect clique in the hypervisor (x-nv-gpudirect-clique); trust a measured copy only",
        )
    if not modes and machine.host.virtual_machine is None:
        return unknown(name, "whether this is a virtual machine was not seen")
    return ok(name, "bare metal")


def not_wsl(machine: Machine) -> Check:
    """Number 25: Windows and its Linux subsystem, where pinned memory is scarce and page mapping is refused."""
    name = "wsl"
    if machine.host.wsl is None:
        return unknown(name, "the kernel's name was not seen")
    if machine.host.wsl:
        return warn(
            name, "this is WSL", "expect little pinned memory and no page mapping; a Linux machine has neither limit"
        )
    return ok(name, "not WSL")


def shared_by_default(machine: Machine) -> Check:
    """Number 26: compute modes and the multi-process service, which refuse further contexts."""
    name = "compute-mode"
    closed = [label(card) for card in machine.cards if card.compute_mode == "prohibited"]
    exclusive = [label(card) for card in machine.cards if card.compute_mode == "exclusive process"]
    if closed:
        return fail(name, f"compute is prohibited on {listed(closed)}", "nvidia-smi -c 0")
    if exclusive:
        return warn(
            name, f"one process only on {listed(exclusive)}", "nvidia-smi -c 0, if others are to use the card too"
        )
    if machine.driver.multi_process_service:
        return warn(
            name, "the multi-process service (MPS) runs", "stop it for pooling: echo quit | nvidia-cuda-mps-control"
        )
    if all(card.compute_mode is None for card in machine.cards):
        return unknown(name, "the compute mode was not seen")
    return ok(name, "default on all cards")


def not_confidential(machine: Machine) -> Check:
    """Number 30: confidential computing, which encrypts or refuses peer copies."""
    name = "confidential-computing"
    if machine.driver.confidential_computing is None:
        return unknown(name, "the state of confidential computing was not seen")
    if machine.driver.confidential_computing:
        return warn(
            name, "on: copies are encrypted or refused", "turn it off in the BIOS if the cards need not be shielded"
        )
    return ok(name, "off")


def maps_pages(machine: Machine) -> Check:
    """Number 27: no page mapping (cuMemCreate, cuMemMap), which a pool over several cards needs."""
    name = "page-mapping"
    without = [label(card) for card in machine.cards if card.mapped_memory is False]
    if without:
        return fail(
            name,
            f"CUDA cannot map memory page by page on {listed(without)}",
            "use Linux on bare metal with a driver from 450 on; until then the pool stays on one card",
        )
    if all(card.mapped_memory is None for card in machine.cards):
        return unknown(name, "CUDA was not asked")
    return ok(name, "on all cards that CUDA shows")


def _cuda_is_silent(machine: Machine) -> bool:
    """Whether CUDA refuses itself; that it shows no card may be meant so by CUDA_VISIBLE_DEVICES."""
    error = machine.driver.cuda_error
    return error is not None and not error.endswith("NO_DEVICE") and all(x.cuda_index is None for x in machine.cards)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
