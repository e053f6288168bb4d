"""What cards say about themselves: errors, heat, power."""

from __future__ import annotations

from poolrt.topology.doctor.check import Check, fail, label, listed, ok, unknown, warn
from poolrt.topology.facts import CardFacts, Machine

_NORMAL_UNDER_LOAD = "power cap"
_RECOVERY = {
    "DRAIN_P2P": "end all jobs that use peer access on this card, then reset it",
    "GPU_RESET": "reset the card: nvidia-smi --gpu-reset -i N",
    "NODE_REBOOT": "restart the machine",
    "DRAIN_AND_RESET": "end all jobs on this card, then reset it",
}


def cards_without_errors(machine: Machine) -> Check:
    """Number 22: Xid events, uncorrected ECC errors, rows to remap, recovery that the driver asks for."""
    name = "card-errors"
    found = [f"{label(card)}: {problem}" for card in machine.cards for problem in _problems(card)]
    found += list(machine.host.xid_events or ())
    if found:
        actions = [card.health.recovery_action for card in machine.cards]
        fix = next(
            (_RECOVERY[action] for action in actions if action in _RECOVERY),
            "reset the card; if errors stay, replace it",
        )
        return fail(name, listed(found), fix)
    asked = any(x.health.uncorrected_ecc_errors is not None or x.health.recovery_action for x in machine.cards)
    if machine.host.xid_events is None:
        evidence = "the cards report none; the kernel log was not seen" if asked else "neither cards nor log were asked"
        return unknown(name, evidence, "run the doctor as root, or look for Xid in `dmesg`")
    return ok(name, "no ECC error, no row to remap, no Xid event")


def not_throttled(machine: Machine) -> Check:
    """Number 23: clocks held down by heat or by the power supply. A power cap under load is as it should be."""
    name = "throttling"
    seen = [(card, card.health.throttle_reasons) for card in machine.cards if card.health.throttle_reasons is not None]
    slow = [f"{label(card)}: {', '.join(reasons)}" for card, reasons in seen if set(reasons) - {_NORMAL_UNDER_LOAD}]
    if slow:
        return warn(name, listed(slow), "look at fans, air flow, the power supply and its cables")
    if not seen:
        return unknown(name, "why clocks are low was not seen")
    return ok(name, "neither heat nor power supply holds a card down")


def full_power(machine: Machine) -> Check:
    """Number 24: a power limit below the card's default."""
    name = "power-limit"
    limits = [(card, card.health.power_limit_watts, card.health.default_power_limit_watts) for card in machine.cards]
    lowered = [
        f"{label(card)}: {now:.0f} of {default:.0f} W"
        for card, now, default in limits
        if now and default and now < default
    ]
    if lowered:
        return warn(name, listed(lowered), "nvidia-smi -i N -pl WATTS, if the lower limit is not meant")
    if all(now is None or default is None for _, now, default in limits):
        return unknown(name, "the power limits were not seen")
    return ok(name, "no card is limited below its default")


def _problems(card: CardFacts) -> list[str]:
    health, problems = card.health, []
    if health.uncorrected_ecc_errors:
        problems.append(f"{health.uncorrected_ecc_errors} uncorrected ECC errors since the last boot")
    if health.rows_to_remap:
        problems.append("memory rows wait to be remapped, or remapping has failed")
    if health.recovery_action not in (None, "NONE"):
        problems.append(f"the driver asks for {health.recovery_action}")
    return problems
