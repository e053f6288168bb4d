"""From what was seen of a machine to a topology that planning can use. Pure.

    what was seen of a pair                        its link
    active NVLinks, counted or printed as NV#      NVLINK, as many links
    peer access refused                            HOST, over the narrower of the two slots
    anything else                                  PCIE, over the narrower of the two slots

A slot that was not seen counts as sixteen lanes of the generation that the card's name tells; a card of unknown name as
generation 3, a low estimate that planning can live with until a copy is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import LinkPreset, link_preset, wire_of_signal
from poolrt.topology.facts import CardFacts, Machine, PairFacts
from poolrt.topology.known_cards import known_card
from poolrt.topology.topology import Card, CardKind, Link, Topology

_LOW_GENERATION = 3
_ALL_LANES = 16
# Between cards of unknown name: the oldest that has so many links. Four are taken as a GA10x bridge, the usual pair.
_WIRES_BY_LINKS = ("nvlink2", "nvlink3sxm", "nvlink4")


def assemble(machine: Machine, kind: CardKind, device: Callable[[int], str]) -> Topology:
    """The topology of a machine's cards, numbered from 0 in the order in which the machine holds them.

    Args:
        machine: what was seen.
        kind: what the cards are to be.
        device: from a card's position to torch's name for it.

    Returns:
        Cards of 0 bytes where their memory was not seen, which only cards of kind "recorded" may have.
    """
    cards = tuple(
        Card(
            index=position,
            name=card.name or f"GPU {card.index}",
            kind=kind,
            memory_bytes=card.memory_bytes or 0,
            device=device(position),
        )
        for position, card in enumerate(machine.cards)
    )
    pairs = permutations(enumerate(machine.cards), 2)
    return Topology(cards=cards, links=tuple(_link(machine, *first, *second) for first, second in pairs))


def pair_preset(machine: Machine, source: CardFacts, target: CardFacts) -> LinkPreset:
    """The catalogue's link between two cards of the machine."""
    pair = machine.pair(source.index, target.index)
    links = nvlink_count(pair)
    if links:
        return _nvlink(source, target, links)
    way = "host" if pair.peer_access is False or _refused_by_name(source, target, pair) else "pcie"
    return link_preset(f"{way}{_generation(source, target)}x{_lanes(source, target)}")


def nvlink_count(pair: PairFacts) -> int:
    """Active NVLinks of a pair: counted link by link where that was seen, else as `topo -m` prints it."""
    if pair.nvlinks is not None:
        return pair.nvlinks
    return int(pair.relation[2:]) if pair.relation and pair.relation.startswith("NV") else 0


def _link(machine: Machine, source_at: int, source: CardFacts, target_at: int, target: CardFacts) -> Link:
    pair = machine.pair(source.index, target.index)
    preset = pair_preset(machine, source, target)
    printed = pair.relation if pair.relation and not pair.relation.startswith("NV") else None
    return replace(
        preset.link(source_at, target_at),
        relation=preset.relation if preset.kind == "NVLINK" else printed or preset.relation,
        bytes_per_s=pair.measured_bytes_per_s or preset.bytes_per_s,
    )


def _nvlink(source: CardFacts, target: CardFacts, links: int) -> LinkPreset:
    """Told by the rate of an active port, else by a name, else by the number of links, slowest first."""
    ports = [port for card in (source, target) for port in card.nvlinks or () if port.active]
    rates = [port.signal_bytes_per_s for port in ports if port.signal_bytes_per_s]
    known = known_card(source.name) or known_card(target.name)
    told = [wire_of_signal(min(rates)) if rates else None, known.nvlink if known else None]
    for wire in (*told, *(["nvlink3rtx"] if links == 4 else []), *_WIRES_BY_LINKS):
        try:
            return link_preset(f"{wire}x{links}")
        except ConfigurationError:
            continue
    widest = link_preset("nvlink5x18")
    return replace(widest, relation=f"NV{links}", nominal_bytes_per_s=widest.nominal_bytes_per_s / 18 * links)


def _refused_by_name(source: CardFacts, target: CardFacts, pair: PairFacts) -> bool:
    """Whether the maker's driver is known to refuse such a pair; what the driver said itself counts before."""
    known = [known_card(card.name) for card in (source, target)]
    return pair.peer_access is None and any(card is not None and not card.peer_over_pcie for card in known)


def _generation(source: CardFacts, target: CardFacts) -> int:
    return min(_generation_of(source), _generation_of(target))


def _generation_of(card: CardFacts) -> int:
    known = known_card(card.name)
    return card.pcie.maximum_generation or (known.pcie_generation if known else _LOW_GENERATION)


def _lanes(source: CardFacts, target: CardFacts) -> int:
    return min(card.pcie.maximum_width or _ALL_LANES for card in (source, target))
