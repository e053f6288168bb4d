"""All checks over one machine, and the verdict over all checks."""

from __future__ import annotations

from collections.abc import Sequence

from poolrt.topology.doctor import driver, environment, health, links, peers, slots
from poolrt.topology.doctor.check import Check, Examination
from poolrt.topology.facts import Machine

WITHOUT_CARDS: tuple[Examination, ...] = (
    driver.cards_found,
    driver.driver_fits,
    driver.not_wsl,
    environment.enough_shared_memory,
)
"""checks that have something to say on a machine without a card"""

CHECKS: tuple[Examination, ...] = (
    driver.cards_found,
    driver.driver_fits,
    driver.all_visible,
    driver.no_mig,
    driver.fabric_ready,
    links.links_active,
    links.links_to_cards_here,
    links.links_enabled,
    links.cards_in_fabric,
    links.links_without_errors,
    links.links_used,
    peers.peer_access,
    peers.copies_arrive,
    peers.same_architecture,
    peers.iommu_passes_through,
    peers.no_acs_redirect,
    peers.large_window,
    peers.few_enough_peers,
    peers.hmm_off,
    driver.maps_pages,
    driver.on_bare_metal,
    driver.not_wsl,
    driver.shared_by_default,
    driver.not_confidential,
    slots.on_one_numa_node,
    slots.full_slot,
    slots.pcie_without_errors,
    slots.few_switch_writers,
    environment.nccl_unhindered,
    environment.nccl_reaches_far,
    environment.enough_shared_memory,
    environment.enough_locked_memory,
    health.cards_without_errors,
    health.not_throttled,
    health.full_power,
)
"""in the order in which they are worth reading: what is there, NVLink, peers, slots, limits, health"""


def examine(machine: Machine) -> list[Check]:
    """Every check that this machine gives something to look at; only those of the machine itself if it has no card."""
    return [check(machine) for check in (CHECKS if machine.cards else WITHOUT_CARDS)]


def exit_code(checks: Sequence[Check]) -> int:
    """0 if all is well as far as it was seen, 1 for a warning, 2 for a failure."""
    verdicts = {check.verdict for check in checks}
    return 2 if "fail" in verdicts else 1 if "warn" in verdicts else 0
