"""`poolrt bench copy`: what do copies between these cards really get, and do they arrive?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolrt.cards import DEFAULT_VIRTUAL_CARDS, DEFAULT_VIRTUAL_MEMORY, discover, virtual
from poolrt.cli.terminal import console
from poolrt.errors import ConfigurationError
from poolrt.topology.request import VirtualRequest, parse_cards
from poolrt.topology.topology import Topology
from poolrt.transfer.measuring.effort import FULL, QUICK, Effort
from poolrt.transfer.measuring.figures import RouteFigures
from poolrt.transfer.measuring.measure import Pair, measure
from poolrt.transfer.measuring.measured import measured
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.units import format_nbytes, format_seconds, parse_nbytes

NAME = "bench"
HELP = "measure this machine: `poolrt bench copy` proves and times copies between cards, by every route"

_STYLES = {"usable": "green", "slower": "yellow", "lies": "bold red", "fails": "bold red"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt bench copy`."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    copy = what.add_parser("copy", help="copies between cards", description=f"{__doc__} Exit code 1 if some do not.")
    copy.add_argument("--pairs", metavar="0:1,2:3", help="these cards only, both ways; a card with itself is 0:0")
    copy.add_argument("--sizes", metavar="1KiB,1MiB", help="bytes of the timed copies; default 1 KiB to 64 MiB")
    copy.add_argument("--quick", action="store_true", help="fewer sizes and repeats: seconds instead of half a minute")
    copy.add_argument("--virtual", metavar="2x1GiB", help="virtual cards of these sizes instead of the machine's cards")
    copy.add_argument("--link", metavar="NAME", help="the link stated between virtual cards, such as nvlink3x4")
    copy.add_argument("--paced", action="store_true", help="virtual links that take the time they state")
    copy.add_argument("--json", action="store_true", help="print JSON, schema 1")


def run(options: argparse.Namespace) -> int:
    """Measure, print, and keep what was measured of whole GPUs for later starts.

    Raises:
        ConfigurationError: if a pair, a size or the cards cannot be read, or are not there.
    """
    topology = cards_of(options.virtual, options.link, paced=options.paced)
    effort, pairs = effort_of(options), parse_pairs(options.pairs)
    start = time.perf_counter()
    whole = pairs is None and options.sizes is None
    found = measured(topology, effort=effort, fresh=True) if whole else measure(topology, effort=effort, pairs=pairs)
    seconds = time.perf_counter() - start
    if options.json:
        cards = [{"index": card.index, "name": card.name, "kind": card.kind} for card in topology.cards]
        print(json.dumps({**found.to_dict(), "cards": cards, "seconds": seconds}, indent=2))
    else:
        show(found, topology, console())
        console().print(Text(f"measured in {format_seconds(seconds)}", style="dim"))
    return 0 if all(proof.good for proof in found.proofs) else 1


def cards_of(wanted: str | None, link: str | None = None, *, paced: bool = False) -> Topology:
    """Virtual cards if they are wanted, else those of the machine or of POOLRT_CARDS.

    Raises:
        ConfigurationError: if the text is no sizes of cards, or a link is stated for cards that have their own.
    """
    if wanted is None and link is None and not paced:
        return discover()
    request = parse_cards(f"virtual:{wanted or f'{DEFAULT_VIRTUAL_CARDS}x{DEFAULT_VIRTUAL_MEMORY}'}")
    assert isinstance(request, VirtualRequest)
    return virtual(len(request.memory_bytes), list(request.memory_bytes), link=link, paced=paced)


def effort_of(options: argparse.Namespace) -> Effort:
    """How much to copy.

    Raises:
        ConfigurationError: if a size cannot be read.
    """
    effort = QUICK if options.quick else FULL
    if options.sizes is None:
        return effort
    sizes = sorted({parse_nbytes(word) for word in options.sizes.split(",")})
    return replace(effort, sizes=tuple(sizes))


def parse_pairs(text: str | None) -> list[Pair] | None:
    """`0:1,2:3` as ordered pairs, both ways each; None stays None.

    Raises:
        ConfigurationError: if the text is something else.
    """
    if text is None:
        return None
    pairs: list[Pair] = []
    for word in text.split(","):
        source, _, target = word.strip().partition(":")
        if not (source.isdecimal() and target.isdecimal()):
            raise ConfigurationError(f"cannot read {word!r} as a pair of cards; write --pairs 0:1 or --pairs 0:1,2:3")
        pairs += [(int(source), int(target)), (int(target), int(source))]
    return list(dict.fromkeys(pairs))


def show(found: Measurement, topology: Topology, out: Console) -> None:
    """Print a table of pairs and routes, then a sentence per peer route."""
    kinds = " and ".join(dict.fromkeys(card.kind for card in topology.cards))
    virtual_cards = any(card.kind == "virtual" for card in topology.cards)
    table = Table(title=f"copies between {kinds} cards")
    table.add_column("cards")
    table.add_column("route")
    for column in ("latency", "GB/s", "half of it at", "GB/s each, both ways", "sizes"):
        table.add_column(column, justify="right")
    for figures in found.figures:
        if figures.direction == "one way":
            table.add_row(*_row(found, figures))
    out.print(table)
    if virtual_cards:
        out.print(Text("virtual cards: these are copies within the host's memory, no figures of a GPU or a link"))
    for sentence in _host_lies(found):
        out.print(Text(sentence, style=_STYLES["lies"]))
    for verdict in found.verdicts:
        line = Text(f"{verdict.finding:6}  ", style=_STYLES[verdict.finding])
        out.print(line + Text(verdict.sentence, style="none"))


def _row(found: Measurement, figures: RouteFigures) -> Sequence[str]:
    first, second = sorted((figures.source, figures.target))
    both = found.of_route(figures.route, first, second, "both ways")
    alone = figures.source == figures.target
    sizes = [format_nbytes(figures.points[at].nbytes) for at in (0, -1)]
    return (
        str(figures.source) if alone else f"{figures.source} -> {figures.target}",
        figures.route,
        format_seconds(figures.line.latency_s),
        f"{figures.line.bytes_per_s / 1e9:.3g}",
        format_nbytes(figures.line.half_bandwidth_nbytes),
        f"{both.line.bytes_per_s / 1e9:.3g}" if both and not alone else "-",
        " to ".join(dict.fromkeys(sizes)),
    )


def _host_lies(found: Measurement) -> list[str]:
    sentences = []
    for proof in found.proofs:
        if proof.route == "HOST" and not proof.good:
            way = "the host and back" if proof.source == proof.target else f"card {proof.target} through the host"
            what = proof.failure or f"{proof.wrong_nbytes} of {proof.nbytes} bytes arrived wrong"
            sentences.append(f"card {proof.source} to {way}: {what}")
    return sentences
