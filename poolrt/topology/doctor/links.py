"""NVLink: are the links up, do they lead to the right place, do they make errors, are they used?"""

from __future__ import annotations

import re

from poolrt.topology.assemble import nvlink_count
from poolrt.topology.catalog import wire_of_signal
from poolrt.topology.doctor.check import Check, fail, label, listed, named, ok, unknown, warn
from poolrt.topology.facts import CardFacts, Machine
from poolrt.topology.known_cards import known_card

_LINKS_OF_A_BRIDGE = 4
_RESEAT = (
    "power off, take the bridge off and seat it again, then start from cold; a restart alone does not retrain links"
)
# Registry keys of the kernel driver that turn NVLink off: RMNvLinkEnable=0x0, RMNvLinkDisable=1, ...
_TURNED_OFF = re.compile(
    r"nvlink\w*enable\w*\W*[=:]\W*(0x)?0+\b|nvlink\w*disable\w*\W*[=:]\W*(0x)?0*[1-9a-f]", re.IGNORECASE
)


def links_active(machine: Machine) -> Check:
    """Number 1: a bridge that is absent or badly seated, links that are down."""
    name = "nvlink-active"
    seen = [card for card in machine.cards if card.nvlinks is not None]
    findings = [finding for card in seen if (finding := _links_of(name, card))]
    for verdict in ("fail", "warn"):
        worst = [finding for finding in findings if finding.verdict == verdict]
        if worst:
            return Check(
                id=name, verdict=worst[0].verdict, evidence=listed(x.evidence for x in worst), fix=worst[0].fix
            )
    if len(seen) == len(machine.cards):
        return ok(name, listed(f"{label(card)}: {_count(card)}" for card in seen))
    known = [known_card(card.name) for card in machine.cards]
    if all(card is not None and card.nvlink is None for card in known):
        return ok(name, "these cards have no NVLink")
    return unknown(
        name,
        "the state of the links was not seen; `nvidia-smi topo -m` may still print links that have died since",
        "run `nvidia-smi nvlink -s`",
    )


def links_to_cards_here(machine: Machine) -> Check:
    """Number 2: links that lead to another card than meant, or to a switch that a virtual machine hides."""
    name = "nvlink-far-ends"
    ports = [(card, port) for card in machine.cards for port in card.nvlinks or () if port.active]
    here = {card.bus_id for card in machine.cards if card.bus_id}
    if not ports and all(card.nvlinks is not None for card in machine.cards):
        return ok(name, "no NVLink is up, so none leads astray")
    hidden = [f"{label(card)}, link {port.index}" for card, port in ports if port.remote == "UNKNOWN"]
    if hidden:
        return warn(
            name,
            f"links to something that cannot be named: {listed(hidden)}",
            "a virtual machine hides the NVSwitches: hand all cards and switches of the board to one machine, or use "
            "the pairs that a measured copy shows to work",
        )
    if not any(port.remote_bus_id for _, port in ports) or len(here) < len(machine.cards):
        return unknown(name, "the far ends of the links were not seen", "run `nvidia-smi nvlink -R`")
    astray = [
        f"{label(card)}, link {port.index}, leads to {port.remote_bus_id}"
        for card, port in ports
        if port.remote in ("GPU", None) and port.remote_bus_id not in here
    ]
    if astray:
        return warn(
            name,
            f"links to cards that this system does not show: {listed(astray)}",
            "use cards that are bridged to each other, or make the far card visible (container and virtual machine "
            "settings)",
        )
    return ok(name, "every active link leads to a card or a switch of this box")


def links_enabled(machine: Machine) -> Check:
    """Number 3: NVLink turned off by a registry key or a bandwidth mode."""
    name = "nvlink-enabled"
    refused = [named(pair) for pair in machine.pairs if "DR" in pair.peer_status.values() and pair.source < pair.target]
    parameters = machine.driver.parameters
    keys = [f"{key}: {value}" for key, value in (parameters or {}).items() if _TURNED_OFF.search(f"{key}={value}")]
    if refused or keys:
        return fail(
            name,
            f"disabled by a key of the driver: {listed([*refused, *keys])}",
            "remove NVLink and peer keys from NVreg_RegistryDwords in /etc/modprobe.d, then restart",
        )
    if machine.driver.nvlink_mode not in (None, "FULL"):
        return warn(name, f"bandwidth mode {machine.driver.nvlink_mode}", "run `nvidia-smi nvlink --setBwMode FULL`")
    if parameters is None and machine.driver.nvlink_mode is None and not any(x.peer_status for x in machine.pairs):
        return unknown(name, "neither the driver's parameters nor its peer status were seen")
    return ok(name, "no key and no mode holds NVLink back")


def cards_in_fabric(machine: Machine) -> Check:
    """Number 10: one card out of a fabric that all others are in, or in it with fewer links."""
    name = "nvlink-fabric-complete"
    if len(machine.cards) < 3:
        return ok(name, "fewer than three cards make no fabric")
    linked = {card.index: _has_links(machine, card) for card in machine.cards}
    without = [card for card in machine.cards if linked[card.index] is False]
    if None in linked.values():
        return unknown(name, "the links of some cards were not seen", "run `nvidia-smi topo -m`")
    others = [card for card in machine.cards if linked[card.index]]
    if without and len(without) < len(others) and all(_in_fabric(machine, card) for card in others):
        return fail(
            name,
            f"{listed(label(card) for card in without)}: no NVLink, while the other cards have theirs",
            "drain the machine and reset the card (`nvidia-smi --gpu-reset -i N`); if it stays away, have it replaced",
        )
    short = _cards_with_fewer_links(machine)
    if short:
        return fail(name, listed(short), "drain the machine and reset the card; if it stays short of links, replace it")
    return ok(name, "no card stands alone among linked ones")


def links_without_errors(machine: Machine) -> Check:
    """Number 21: replays, recoveries and CRC errors of links."""
    name = "nvlink-errors"
    ports = [(card, port) for card in machine.cards for port in card.nvlinks or () if port.errors is not None]
    if not ports and all(card.active_links == 0 for card in machine.cards):
        return ok(name, "no NVLink is up")
    if not ports:
        return unknown(name, "no error counters of NVLinks were seen", "run `nvidia-smi nvlink -e`")
    growing = [f"{label(card)}, link {port.index}: {port.new_errors} more" for card, port in ports if port.new_errors]
    if growing:
        return fail(name, f"errors came while we watched: {listed(growing)}", f"{_RESEAT}; if they stay, replace it")
    old = [f"{label(card)}, link {port.index}: {port.errors}" for card, port in ports if port.errors]
    if old:
        return warn(
            name,
            f"errors since the driver was loaded: {listed(old)}",
            "look again under load: counters that stand still are history, counters that grow need the bridge reseated",
        )
    return ok(name, f"{len(ports)} links without an error")


def links_used(machine: Machine) -> Check:
    """Number 33: whether copies between linked cards really go over NVLink: its byte counters must move."""
    name = "nvlink-used"
    linked = [pair for pair in machine.pairs if nvlink_count(pair)]
    if not linked:
        return ok(name, "no pair is joined by NVLink")
    proven = [(pair, pair.proof) for pair in linked if pair.proof and pair.proof.nvlink_nbytes is not None]
    elsewhere = [
        f"{pair.source} -> {pair.target}: {proof.nvlink_nbytes} of {proof.nbytes} bytes"
        for pair, proof in proven
        if (proof.nvlink_nbytes or 0) < 0.9 * proof.nbytes
    ]
    if elsewhere:
        return fail(
            name,
            f"copies did not go over NVLink: {listed(elsewhere)}",
            "look at peer access and at NCCL_P2P_DISABLE; then at the fabric manager where there are switches",
        )
    if not proven:
        return unknown(
            name, "no copy was watched", "`poolrt doctor --probe` copies between the cards and reads the counters"
        )
    return ok(name, f"{len(proven)} watched copies went over NVLink")


def _in_fabric(machine: Machine, card: CardFacts) -> bool:
    """Whether a card's links are more than a bridge to one neighbour."""
    known = known_card(card.name)
    partners = sum(pair.source == card.index and nvlink_count(pair) > 0 for pair in machine.pairs)
    return partners > 1 or (partners == 0 and known is not None and not known.by_bridge)


def _cards_with_fewer_links(machine: Machine) -> list[str]:
    """Cards whose best link to any other card is thinner than the best of all: one dead link shows in every pair."""
    best = {
        card.index: max((nvlink_count(pair) for pair in machine.pairs if pair.source == card.index), default=0)
        for card in machine.cards
    }
    most = max(best.values())
    return [
        f"{label(card)}: NV{best[card.index]}, others NV{most}" for card in machine.cards if 0 < best[card.index] < most
    ]


def _links_of(name: str, card: CardFacts) -> Check | None:
    """What is wrong with one card's links; None if nothing is."""
    active, known = card.active_links or 0, known_card(card.name)
    down = [str(port.index) for port in card.nvlinks or () if not port.active]
    evidence = f"{label(card)}: {_count(card)} up" + (f", inactive are {', '.join(down)}" if down else "")
    if known is None:
        return _links_of_unknown(name, card, evidence) if down else None
    if active >= known.healthy_links:
        return None
    evidence = f"{evidence}; {known.healthy_links} belong to this card"
    if active == 0 and known.by_bridge:
        return warn(name, evidence, f"where a bridge is mounted: {_RESEAT}. Without one the cards talk over PCIe")
    if known.by_bridge and active % _LINKS_OF_A_BRIDGE == 0:
        bridges = f"{active // _LINKS_OF_A_BRIDGE} of {known.healthy_links // _LINKS_OF_A_BRIDGE}"
        return warn(name, f"{evidence} ({bridges} bridges)", f"mount all bridges; where they are mounted: {_RESEAT}")
    return fail(name, evidence, _RESEAT if known.by_bridge else "drain the machine and reset the card; then replace it")


def _links_of_unknown(name: str, card: CardFacts, evidence: str) -> Check:
    """Of a card whose name is not known: ports that are never up by design exist in generation 4 only."""
    rates = [port.signal_bytes_per_s for port in card.nvlinks or () if port.signal_bytes_per_s]
    if rates and wire_of_signal(min(rates)) == "nvlink4":
        return warn(name, evidence, "H100 PCIe cards have twelve of eighteen links; any other number: " + _RESEAT)
    return fail(name, evidence, _RESEAT)


def _count(card: CardFacts) -> str:
    return f"{card.active_links} of {len(card.nvlinks or ())} links" if card.nvlinks else "no links"


def _has_links(machine: Machine, card: CardFacts) -> bool | None:
    if card.nvlinks is not None:
        return bool(card.active_links)
    pairs = [pair for pair in machine.pairs if pair.source == card.index and pair.relation]
    return any(nvlink_count(pair) for pair in pairs) if pairs else None
