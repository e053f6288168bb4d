"""`poolrt topo`: which cards are there, and how are they joined?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolrt.cards import DEFAULT_VIRTUAL_CARDS, DEFAULT_VIRTUAL_MEMORY, discover
from poolrt.cli.pasted import add_from_option, print_remarks, read_from
from poolrt.cli.plot import save_picture
from poolrt.cli.terminal import console
from poolrt.errors import ConfigurationError
from poolrt.topology.assemble import assemble, nvlink_count, pair_preset
from poolrt.topology.box import box_names, load_box
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.catalog import LinkPreset
from poolrt.topology.discover import Sources, read_shown_machine
from poolrt.topology.facts import Machine, PairFacts
from poolrt.topology.pasted.read import Remark
from poolrt.topology.request import CudaRequest, LogicalRequest, VirtualRequest, parse_cards
from poolrt.topology.topology import Topology
from poolrt.transfer.measuring.corrected import corrected
from poolrt.transfer.measuring.effort import QUICK
from poolrt.transfer.measuring.measured import measured, recalled
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.units import format_nbytes, parse_nbytes

NAME = "topo"
HELP = "show the cards of this machine, of a recorded box, or of pasted nvidia-smi output, and the links between them"


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown."""

    topology: Topology
    machine: Machine | None = None
    """what the topology was drawn from, card by card; None for cards that are made"""
    measurement: Measurement | None = None
    """what copies between these very cards were seen to get"""
    about: str = ""
    sources: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()

    def preset(self, source: int, target: int) -> LinkPreset | None:
        """The catalogue's link between two cards."""
        if self.machine is None:
            return None
        return pair_preset(self.machine, self.machine.cards[source], self.machine.cards[target])

    def measured_bytes_per_s(self, source: int, target: int) -> float | None:
        """What one copy got here; on a recorded machine, what somebody saw there."""
        here = self.measurement.bytes_per_s(source, target) if self.measurement else None
        return here or self.pair(source, target).measured_bytes_per_s

    def pair(self, source: int, target: int) -> PairFacts:
        """What was seen of the way between two cards; nothing of cards that are made."""
        if self.machine is None:
            return PairFacts(source=source, target=target)
        return self.machine.pair(self.machine.cards[source].index, self.machine.cards[target].index)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt topo`."""
    what = parser.add_mutually_exclusive_group()
    add_from_option(what)
    what.add_argument("--box", metavar="NAME", help=f"a recorded box: {', '.join(box_names())}")
    what.add_argument("--measure", action="store_true", help="copy between the cards now and show what copies get")
    parser.add_argument("--json", action="store_true", help="print JSON, schema 1")
    parser.add_argument("--plot", metavar="FILE.png", help="draw cards and links into a picture (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Show a topology.

    Raises:
        ConfigurationError: if there is no such box or file, the text tells of no card, or matplotlib is missing.
        DriverError: if CUDA is there and fails.
    """
    view = _view(options)
    if options.plot:
        save_picture(view.topology, options.plot, title=view.about)
    if options.json:
        print(json.dumps(to_dict(view), indent=2))
    else:
        show(view, console())
    return 0


def to_dict(view: View) -> dict[str, Any]:
    """The topology as plain values, schema 1, with what was seen of every card and link besides."""
    body = view.topology.to_dict()
    for link in body["links"]:
        preset = view.preset(link["source"], link["target"])
        link["nominal_bytes_per_s"] = preset.nominal_bytes_per_s if preset else None
        link["wire"] = preset.name if preset else None
        pair = view.pair(link["source"], link["target"])
        measured_bytes_per_s = view.measured_bytes_per_s(link["source"], link["target"])
        link |= {"measured_bytes_per_s": measured_bytes_per_s, "nvlinks": nvlink_count(pair)}
        verdict = view.measurement.verdict(link["source"], link["target"]) if view.measurement else None
        link |= {"finding": verdict.finding if verdict else None}
        link |= {"pcie_relation": pair.pcie_relation, "peer_access": pair.peer_access}
    for card, facts in zip(body["cards"], view.machine.cards if view.machine else (), strict=False):
        card |= {"uuid": facts.uuid, "bus_id": facts.bus_id, "numa_node": facts.numa_node}
        card |= {"cpu_affinity": facts.cpu_affinity, "active_nvlinks": facts.active_links}
    return body | {
        "about": view.about,
        "sources": list(view.sources),
        "not_understood": [asdict(remark) for remark in view.remarks],
    }


def show(view: View, out: Console) -> None:
    """Print the cards, then a matrix of their links."""
    if view.about:
        out.print(Text(view.about))
    out.print(_cards_table(view))
    if len(view.topology) > 1:
        out.print(_links_table(view))
        out.print(
            Text("a cell: relation, wire, nominal GB/s in one direction, and measured GB/s where a copy was measured")
        )
        out.print(Text("HOST: no peer access, copies go through the host's memory", style="dim"))
    for verdict in view.measurement.verdicts if view.measurement else ():
        if not verdict.usable:
            out.print(Text(verdict.sentence, style="bold red" if verdict.finding == "lies" else "yellow"))
    if view.measurement and any(card.kind == "virtual" for card in view.topology.cards):
        out.print(Text("virtual cards: measured are copies within the host's memory", style="dim"))
    for source in view.sources:
        out.print(Text(f"source: {source}", style="dim"))


def _view(options: argparse.Namespace) -> View:
    if options.from_file:
        reading = read_from(options.from_file)
        if not options.json:
            print_remarks(reading)
        return _recorded(reading.machine, remarks=reading.remarks)
    if options.box:
        box = load_box(options.box)
        return _recorded(box.machine, about=f"{box.name}: {box.about}", sources=box.sources)
    view = _here(os.environ.get("POOLRT_CARDS"))
    if options.measure:
        cards = discover() if view.machine is None else view.topology  # which turns virtual cards on
        found: Measurement | None = measured(cards, effort=QUICK, fresh=True)
    else:
        found = recalled(view.topology)
    return replace(view, topology=corrected(view.topology, found), measurement=found) if found else view


def _recorded(
    machine: Machine, *, about: str = "", sources: tuple[str, ...] = (), remarks: tuple[Remark, ...] = ()
) -> View:
    topology = assemble(machine, "recorded", lambda position: f"vcard:{position}")
    return View(topology=topology, machine=machine, about=about, sources=sources, remarks=remarks)


def _here(wanted: str | None) -> View:
    """What `poolrt.discover()` would give, without turning virtual cards on."""
    request = parse_cards(wanted) if wanted else None
    if isinstance(request, VirtualRequest):
        return View(topology=virtual_topology(request.memory_bytes), about=f"POOLRT_CARDS={wanted}")
    if isinstance(request, LogicalRequest):
        return View(topology=logical_topology(request.device, request.memory_bytes), about=f"POOLRT_CARDS={wanted}")
    machine = read_shown_machine(Sources.of_this_machine())
    if isinstance(request, CudaRequest):
        machine = _chosen(machine, request, str(wanted))
    if machine.cards:
        numbers = [card.cuda_index for card in machine.cards]
        return View(topology=assemble(machine, "cuda", lambda position: f"cuda:{numbers[position]}"), machine=machine)
    print("no CUDA GPU found; `poolrt doctor` says why. Shown are the virtual cards used instead", file=sys.stderr)
    return View(topology=virtual_topology([parse_nbytes(DEFAULT_VIRTUAL_MEMORY)] * DEFAULT_VIRTUAL_CARDS))


def _chosen(machine: Machine, request: CudaRequest, wanted: str) -> Machine:
    by_number = {card.cuda_index: card for card in machine.cards}
    missing = [index for index in request.indices if index not in by_number]
    if missing:
        raise ConfigurationError(f"POOLRT_CARDS={wanted} names GPUs {missing}, but this machine shows {len(by_number)}")
    return Machine(cards=tuple(by_number[index] for index in request.indices), pairs=machine.pairs)


def _cards_table(view: View) -> Table:
    table = Table(title="cards")
    for column in ("card", "device", "kind", "memory", "NUMA node", "PCI address", "name"):
        table.add_column(column)
    for card in view.topology.cards:
        facts = view.machine.cards[card.index] if view.machine else None
        table.add_row(
            str(card.index),
            card.device if card.kind != "recorded" else "-",
            card.kind,
            format_nbytes(card.memory_bytes) if card.memory_bytes else "not told",
            "-" if facts is None or facts.numa_node is None else str(facts.numa_node),
            (facts.bus_id if facts else None) or "-",
            Text(card.name),
        )
    return table


def _links_table(view: View) -> Table:
    table = Table(title="links, from the row's card to the column's", show_lines=True)
    table.add_column("card")
    for card in view.topology.cards:
        table.add_column(str(card.index), justify="center", no_wrap=True)
    for source in view.topology.cards:
        table.add_row(str(source.index), *(_cell(view, source.index, target.index) for target in view.topology.cards))
    return table


def _cell(view: View, source: int, target: int) -> str:
    link = view.topology.link(source, target)
    if source == target or link is None:
        return "X" if source == target else "-"
    preset, reached = view.preset(source, target), view.measured_bytes_per_s(source, target)
    lines = [link.relation if link.kind != "HOST" or link.relation == "HOST" else f"{link.relation} HOST"]
    lines.append(preset.name if preset else link.kind)
    lines.append(f"{(preset.nominal_bytes_per_s if preset else link.bytes_per_s) / 1e9:.4g} GB/s")
    if reached:
        lines.append(f"meas. {reached / 1e9:.4g}")
    return "\n".join(lines)
