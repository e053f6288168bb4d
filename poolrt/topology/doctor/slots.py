"""Where cards sit: NUMA nodes, PCIe slots and switches."""

from __future__ import annotations

from poolrt.topology.doctor.check import Check, both_ways, fail, label, listed, named, ok, over_pcie, unknown, warn
from poolrt.topology.facts import CardFacts, Machine
from poolrt.topology.known_cards import known_card

_ALL_LANES = 16


def on_one_numa_node(machine: Machine) -> Check:
    """Number 18: pairs across sockets. The relation SYS alone proves nothing: boards print it within a socket too."""
    name = "numa-nodes"
    nodes = {card.index: card.numa_node for card in machine.cards}
    across = [
        pair
        for pair in both_ways(machine)
        if over_pcie(pair) and _known_apart(nodes.get(pair.source), nodes.get(pair.target))
    ]
    if across:
        return warn(
            name,
            f"on different NUMA nodes and without NVLink: {listed(map(named, across))}",
            "pool cards of one node where they are enough, and start the process on that node (numactl --cpunodebind)",
        )
    if None in nodes.values() and len(nodes) > 1:
        return unknown(name, "the NUMA node of some cards was not seen", "run `nvidia-smi topo -m`")
    return ok(name, f"NUMA nodes of the cards: {', '.join(str(node) for node in nodes.values())}")


def full_slot(machine: Machine) -> Check:
    """Number 19: slots with few lanes, slow slots, links that came up narrow. Idle links sleep: look under load."""
    name = "pcie-link"
    problems = [f"{label(card)}: {problem}" for card in machine.cards for problem in _slot_problems(card)]
    asleep = [_reduction(card) for card in machine.cards if _is_reduced(card) and not card.pcie.working]
    problems += [_reduction(card) for card in machine.cards if _is_reduced(card) and card.pcie.working]
    if problems:
        return warn(
            name,
            listed(problems),
            "use a slot with sixteen lanes of the processor, seat card and riser again, set the generation in the BIOS",
        )
    if asleep:
        return unknown(name, f"idle, which says little: {listed(asleep)}", "run the doctor again while the cards work")
    if any(card.pcie.maximum_width is None or card.pcie.maximum_generation is None for card in machine.cards):
        return unknown(name, "lanes and generation of some slots were not seen")
    slots = (f"{card.pcie.maximum_generation} x{card.pcie.maximum_width}" for card in machine.cards)
    return ok(name, f"PCIe generation and lanes of the slots: {', '.join(slots)}")


def pcie_without_errors(machine: Machine) -> Check:
    """Number 20: replays and uncorrectable errors on PCIe."""
    name = "pcie-errors"
    fatal = [f"{label(card)}: {card.pcie.fatal_errors}" for card in machine.cards if card.pcie.fatal_errors]
    replays = [f"{label(card)}: {card.pcie.replays}" for card in machine.cards if card.pcie.replays]
    quieten = "seat card and riser again; if they grow, start the kernel with pcie_aspm=off pcie_port_pm=off"
    if fatal:
        return fail(name, f"uncorrectable errors: {listed(fatal)}", quieten)
    if replays:
        return warn(name, f"replays: {listed(replays)}", f"look again under load: {quieten}")
    if all(card.pcie.replays is None and card.pcie.fatal_errors is None for card in machine.cards):
        return unknown(name, "no PCIe error counters were seen")
    return ok(name, "no replay and no uncorrectable error")


def few_switch_writers(machine: Machine) -> Check:
    """Number 32: several cards of one switch that write to several others: posted writes collapse, reads do not."""
    name = "switch-writes"
    groups = _switch_groups(machine)
    if len([group for group in groups if len(group) > 1]) > 1:
        return warn(
            name,
            f"cards behind PCIe switches: {listed(_joined(group) for group in groups)}; several that write to another "
            "switch at once were seen to fall from 37 to 2.7 GB/s",
            "let the receiving card pull (read) instead of the sending card push (write)",
        )
    if not any(pair.relation for pair in machine.pairs) and len(machine.cards) > 1:
        return unknown(name, "how the cards are related was not seen", "run `nvidia-smi topo -m`")
    return ok(name, "no two PCIe switches with several cards each")


def _slot_problems(card: CardFacts) -> list[str]:
    pcie, known = card.pcie, known_card(card.name)
    problems = []
    if pcie.maximum_width is not None and pcie.maximum_width < _ALL_LANES:
        problems.append(f"its slot gives {pcie.maximum_width} of {_ALL_LANES} lanes")
    best = pcie.card_generation or (known.pcie_generation if known else None)
    if best is not None and pcie.maximum_generation is not None and pcie.maximum_generation < best:
        problems.append(f"its slot does PCIe {pcie.maximum_generation}, the card {best}")
    return problems


def _is_reduced(card: CardFacts) -> bool:
    pairs = ((card.pcie.generation, card.pcie.maximum_generation), (card.pcie.width, card.pcie.maximum_width))
    return any(now is not None and most is not None and now < most for now, most in pairs)


def _reduction(card: CardFacts) -> str:
    pcie = card.pcie
    return (
        f"{label(card)}: runs at generation {pcie.generation} x{pcie.width}, could do "
        f"{pcie.maximum_generation} x{pcie.maximum_width}"
    )


def _known_apart(first: int | None, second: int | None) -> bool:
    return first is not None and second is not None and first != second


def _switch_groups(machine: Machine) -> list[set[int]]:
    """Cards that reach each other without leaving their PCIe switches, and could use that for peer copies."""
    groups: list[set[int]] = []
    for card in machine.cards:
        near = {
            pair.target
            for pair in machine.pairs
            if pair.source == card.index and pair.relation in ("PIX", "PXB") and pair.peer_access is not False
        }
        home = next((group for group in groups if group & near), None)
        if home is None:
            groups.append({card.index})
        else:
            home.add(card.index)
    return groups


def _joined(group: set[int]) -> str:
    return "+".join(str(index) for index in sorted(group))
