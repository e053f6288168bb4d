"""Peer access: does the driver grant it, can it be trusted, is the way free?"""

from __future__ import annotations

from poolrt.topology.assemble import nvlink_count
from poolrt.topology.doctor.check import Check, both_ways, fail, label, listed, named, ok, over_pcie, unknown, warn
from poolrt.topology.facts import NO_PEER_ACCESS, CopyProof, Machine, PairFacts
from poolrt.topology.known_cards import known_card
from poolrt.units import format_nbytes

_THROUGH_HOST = "nothing is broken: poolrt copies through the host's memory"
_FIXES = {
    "DR": "remove the peer keys from NVreg_RegistryDwords in /etc/modprobe.d, then restart",
    "CNS": "the chipset is not supported: put the cards under one root complex or one switch",
    "TNS": "the topology is not supported: put the cards under one root complex or one switch",
}
_MOST_PEERS = 8
"""peer mappings per card without a switch; CUDA answers TOO_MANY_PEERS beyond"""


def peer_access(machine: Machine) -> Check:
    """Number 4: the driver refuses peer access."""
    name = "peer-access"
    answers = [(pair, pair.peer_access) for pair in both_ways(machine) if pair.peer_access is not None]
    if len(machine.cards) < 2:
        return ok(name, "one card needs no peer")
    if not answers:
        return unknown(name, "the driver was not asked about peer access", "run `nvidia-smi topo -p2p r`")
    refused = [pair for pair, granted in answers if not granted]
    linked = [pair for pair in refused if nvlink_count(pair)]
    if linked:
        return fail(
            name,
            f"NVLinks are up, but peer access is refused: {listed(map(_refusal, linked))}",
            "look at the checks of NVLink keys, MIG, virtual machine and fabric manager",
        )
    if not refused:
        return ok(name, f"granted to all {len(answers)} pairs (a claim of the driver: only a copy proves it)")
    return warn(name, f"refused: {listed(map(_refusal, refused))}", _remedy(machine, refused))


def same_architecture(machine: Machine) -> Check:
    """Number 5: cards of different generations, which cannot reach each other over NVLink."""
    name = "same-architecture"
    kinds = {card.index: _architecture(machine, card.index) for card in machine.cards}
    seen = {kind for kind in kinds.values() if kind}
    if len(seen) > 1:
        return warn(
            name,
            listed(f"card {index}: {kind}" for index, kind in kinds.items()),
            "pool cards of one generation; others can be used, but copies between them go through the host's memory",
        )
    if None in kinds.values():
        return unknown(name, "the generation of some cards was not seen", "run `nvidia-smi -L`")
    return ok(name, f"all cards: {seen.pop()}")


def iommu_passes_through(machine: Machine) -> Check:
    """Number 6: an IOMMU that translates on bare metal: peer copies then hang or deliver garbage without an error."""
    name = "iommu"
    types, line = machine.host.iommu_group_types, machine.host.kernel_command_line or ""
    if types is None:
        return unknown(name, "the IOMMU groups were not seen")
    translating = sorted(types & {"DMA", "DMA-FQ"})
    passes = "iommu=pt" in line or "iommu.passthrough=1" in line
    if not translating or (passes and "identity" in types):
        return ok(name, "no IOMMU, or one that passes addresses through")
    if machine.host.virtual_machine:
        return ok(name, "the IOMMU belongs to a virtual machine")
    evidence = f"IOMMU groups of type {', '.join(translating)} translate addresses"
    fix = "add iommu=pt to the kernel's command line (or amd_iommu=off, intel_iommu=off) and restart"
    at_risk = [pair for pair in both_ways(machine) if over_pcie(pair) and pair.peer_access]
    if at_risk:
        return fail(name, f"{evidence}, and peer access over PCIe is granted to {listed(map(named, at_risk))}", fix)
    return warn(name, evidence, fix)


def no_acs_redirect(machine: Machine) -> Check:
    """Number 7: bridges that send peer traffic up to the root complex."""
    name = "acs-redirect"
    bridges = machine.host.redirecting_bridges
    if bridges is None:
        return unknown(name, "the ACS settings of PCI bridges can be read by root only", "run the doctor as root")
    if bridges:
        return warn(
            name,
            f"ACS redirects peer traffic at {listed(bridges)}",
            "turn ACS off in the BIOS, or for these bridges with `setpci -s ADDRESS ECAP_ACS+6.w=0`",
        )
    return ok(name, "no bridge above a card redirects peer traffic")


def few_enough_peers(machine: Machine) -> Check:
    """Number 28: more peers than a card can map without a switch."""
    name = "peer-count"
    most = max((_peers(machine, card.index) for card in machine.cards), default=0)
    if most > _MOST_PEERS and not any(port.remote == "SWITCH" for card in machine.cards for port in card.nvlinks or ()):
        return warn(
            name,
            f"a card has {most} peers, CUDA maps {_MOST_PEERS} at a time",
            "pool at most nine cards, or map memory page by page, for which the limit does not hold",
        )
    return ok(name, f"at most {most} peers a card")


def large_window(machine: Machine) -> Check:
    """Number 17: a small BAR1, the window through which peers on PCIe reach a card's memory."""
    name = "bar1-window"
    sizes = [(card, card.bar1_bytes, card.memory_bytes) for card in machine.cards if card.bar1_bytes is not None]
    small = [f"{label(card)}: {format_nbytes(bar1)}" for card, bar1, memory in sizes if memory and bar1 < memory]
    if not sizes:
        return unknown(name, "the size of BAR1 was not seen")
    if small and any(over_pcie(pair) for pair in machine.pairs):
        return warn(
            name,
            f"smaller than the card's memory: {listed(small)}",
            "turn on Resizable BAR and Above 4G Decoding in the BIOS",
        )
    return ok(name, "covers the memory of every card" if not small else "small, but no pair talks over PCIe")


def hmm_off(machine: Machine) -> Check:
    """Number 31: HMM in nvidia_uvm can lock up peer copies over PCIe between workstation cards of Blackwell."""
    name = "unified-memory-hmm"
    if machine.driver.unified_memory_hmm is None:
        return unknown(name, "the parameters of nvidia_uvm were not seen")
    known = [known_card(card.name) for card in machine.cards]
    concerned = sum(card is not None and card.architecture == "Blackwell" and card.nvlink is None for card in known)
    if machine.driver.unified_memory_hmm and concerned > 1:
        return warn(
            name,
            f"HMM is on, with {concerned} Blackwell cards that talk over PCIe: peer copies were seen to hang",
            "put `options nvidia_uvm uvm_disable_hmm=1` into /etc/modprobe.d and restart",
        )
    return ok(name, "off, or not known to harm these cards")


def copies_arrive(machine: Machine) -> Check:
    """Proof of every claim above: bytes written to a peer are read back as they were."""
    name = "copies-arrive"
    proven = [(pair, pair.proof) for pair in machine.pairs if pair.proof]
    if len(machine.cards) < 2:
        return ok(name, "one card needs no peer")
    if not proven:
        return unknown(name, "no copy was checked", "`poolrt doctor --probe` copies between the cards and looks")
    failed = [f"{pair.source} -> {pair.target}: {proof.failure}" for pair, proof in proven if proof.failure]
    if failed:
        return fail(
            name,
            f"copies between cards fail: {listed(failed)}",
            "poolrt goes through the host; look at the checks of links, IOMMU and health, and at the kernel log",
        )
    lying = [_lie(pair, proof) for pair, proof in proven if proof.wrong_nbytes]
    if lying:
        return fail(
            name,
            f"copies deliver wrong bytes: {listed(lying)}",
            "do not use peer access between these cards; look at the checks of IOMMU, ACS and virtual machine",
        )
    return ok(name, f"{len(proven)} copies read back as written")


def _peers(machine: Machine, index: int) -> int:
    return sum(pair.source == index and pair.peer_access is True for pair in machine.pairs)


def _lie(pair: PairFacts, proof: CopyProof) -> str:
    return f"{pair.source} -> {pair.target}: {proof.wrong_nbytes} of {proof.nbytes} bytes"


def _architecture(machine: Machine, index: int) -> str | None:
    card = next(card for card in machine.cards if card.index == index)
    known = known_card(card.name)
    if known:
        return known.architecture
    return f"compute capability {card.compute_capability[0]}.x" if card.compute_capability else None


def _refusal(pair: PairFacts) -> str:
    status = next((x for x in pair.peer_status.values() if x in NO_PEER_ACCESS), None)
    return f"{named(pair)} ({status or 'CUDA answers no'})"


def _remedy(machine: Machine, refused: list[PairFacts]) -> str:
    """Drivers answer both GNS and CNS for cards that their maker keeps from peer access: their names tell."""
    statuses = {status for pair in refused for status in pair.peer_status.values()}
    known = {card.index: known_card(card.name) for card in machine.cards}
    ends = [known.get(index) for pair in refused for index in (pair.source, pair.target)]
    kept_from_it = [card for card in ends if card is not None and not card.peer_over_pcie]
    if "DR" in statuses or not (kept_from_it or statuses <= {"OK", "GNS", "NS", "U"}):
        return next((fix for status, fix in _FIXES.items() if status in statuses), _THROUGH_HOST)
    if any(card.by_bridge for card in kept_from_it):
        return f"{_THROUGH_HOST}. Such cards reach each other over an NVLink bridge; over PCIe their maker refuses"
    return f"{_THROUGH_HOST}. GeForce cards without a bridge are refused by the maker's driver"
