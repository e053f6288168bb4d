"""What the shell, the container and the system allow a process."""

from __future__ import annotations

from poolrt.topology.doctor.check import Check, both_ways, listed, named, ok, over_pcie, unknown, warn
from poolrt.topology.facts import Machine
from poolrt.units import GIB, MIB, format_nbytes

_ENOUGH_SHARED = GIB
_ENOUGH_LOCKED = 64 * MIB
_BEYOND_SWITCHES = ("PHB", "NODE", "SYS")


def nccl_unhindered(machine: Machine) -> Check:
    """Number 13: variables that keep NCCL from peer access or shared memory."""
    name = "nccl-variables"
    environment = machine.host.environment
    if environment is None:
        return unknown(name, "the environment was not seen")
    wrong = [
        f"{variable}={environment[variable]}"
        for variable, values in (
            ("NCCL_P2P_DISABLE", ("1",)),
            ("NCCL_SHM_DISABLE", ("1",)),
            ("NCCL_P2P_LEVEL", ("LOC", "0")),
        )
        if environment.get(variable, "").upper() in values
    ]
    if wrong:
        return warn(name, listed(wrong), f"unset {' '.join(text.partition('=')[0] for text in wrong)}")
    return ok(name, "nothing hinders NCCL")


def nccl_reaches_far(machine: Machine) -> Check:
    """Number 14: by default NCCL uses peer access up to PXB only, whatever the driver grants beyond."""
    name = "nccl-level"
    environment = machine.host.environment
    far = [
        pair
        for pair in both_ways(machine)
        if pair.peer_access and over_pcie(pair) and pair.relation in _BEYOND_SWITCHES
    ]
    if not far:
        return ok(name, "no pair is granted peer access beyond NCCL's default reach")
    if environment is None:
        return unknown(name, "the environment was not seen")
    if "NCCL_P2P_LEVEL" in environment:
        return ok(name, f"NCCL_P2P_LEVEL={environment['NCCL_P2P_LEVEL']}")
    return warn(
        name,
        f"NCCL will not use the peer access of {listed(map(named, far))}; this concerns torchrun, not one process",
        "set NCCL_P2P_LEVEL=SYS once a measured copy between the cards was right",
    )


def enough_shared_memory(machine: Machine) -> Check:
    """Number 15: a small /dev/shm, the usual default of containers."""
    name = "shared-memory"
    nbytes = machine.host.shared_memory_bytes
    if nbytes is None:
        return unknown(name, "the size of /dev/shm was not seen")
    if nbytes < _ENOUGH_SHARED:
        where = " in this container" if machine.host.container else ""
        return warn(
            name, f"/dev/shm has {format_nbytes(nbytes)}{where}", "start the container with --ipc=host or --shm-size=8g"
        )
    return ok(name, f"/dev/shm has {format_nbytes(nbytes)}")


def enough_locked_memory(machine: Machine) -> Check:
    """Number 16: limits of locked and of total memory, against which pinned buffers and the host tier count."""
    name = "locked-memory"
    locked, limit = machine.host.locked_memory_bytes, machine.host.memory_limit_bytes
    on_cards = sum(card.memory_bytes or 0 for card in machine.cards)
    if locked is None and limit is None:
        return unknown(name, "neither limit was seen")
    if locked is not None and 0 <= locked < _ENOUGH_LOCKED:
        return warn(
            name, f"at most {format_nbytes(locked)} may be locked", "ulimit -l unlimited, or docker --ulimit memlock=-1"
        )
    if limit is not None and 0 <= limit < on_cards:
        return warn(
            name,
            f"the control group allows {format_nbytes(limit)}, the cards hold {format_nbytes(on_cards)}",
            "give the container more memory, or keep the host tier small",
        )
    return ok(name, "locked memory is not short")
