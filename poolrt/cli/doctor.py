"""`poolrt doctor`: why do the cards not work together as they could?"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolrt.api import discover
from poolrt.cli.pasted import add_from_option, print_remarks, read_from
from poolrt.cli.proven import proofs_of_virtual_cards, sent_nbytes_of, with_measurement
from poolrt.cli.terminal import console
from poolrt.topology.discover import Sources, discover_cuda, read_everything
from poolrt.topology.doctor.check import Check
from poolrt.topology.doctor.examine import examine, exit_code
from poolrt.topology.doctor.peers import copies_arrive
from poolrt.topology.facts import Machine
from poolrt.topology.request import VirtualRequest, parse_cards
from poolrt.transfer.measuring.effort import QUICK
from poolrt.transfer.measuring.measured import measured, recalled

NAME = "doctor"
HELP = (
    "look for what keeps the cards from working together: verdict, evidence, fix; exit code 0 ok, 1 warning, 2 failure"
)

SCHEMA = 1
_WATCH_S = 0.5
_STYLES = {"fail": "bold red", "warn": "yellow", "ok": "green", "unknown": "dim"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt doctor`."""
    what = parser.add_mutually_exclusive_group()
    add_from_option(what)
    what.add_argument("--probe", action="store_true", help="copy between the cards and look whether it arrives")
    parser.add_argument("--json", action="store_true", help="print JSON, schema 1")


def run(options: argparse.Namespace) -> int:
    """Examine this machine, or one that was pasted.

    Raises:
        ConfigurationError: if the text cannot be read or tells of no card.
    """
    reading = read_from(options.from_file) if options.from_file else None
    machine = reading.machine if reading else _this_machine()
    virtual_proofs: list[Check] = []
    if not reading:
        machine, virtual_proofs = _with_proofs(machine, probe=options.probe)
    replaced = {check.id for check in virtual_proofs}
    checks = [*(check for check in examine(machine) if check.id not in replaced), *virtual_proofs]
    if options.json:
        remarks = [asdict(remark) for remark in reading.remarks] if reading else []
        print(json.dumps(to_dict(checks, machine) | {"not_understood": remarks}, indent=2))
    else:
        if reading:
            print_remarks(reading)
        show(checks, machine, console())
    return exit_code(checks)


def to_dict(checks: Sequence[Check], machine: Machine) -> dict[str, object]:
    """The findings as plain values, schema 1."""
    return {"schema": SCHEMA, "checks": [asdict(check) for check in checks], "unseen": list(machine.unseen)}


def show(checks: Sequence[Check], machine: Machine, out: Console) -> None:
    """Print the findings, worst first, then what could not be seen."""
    table = Table(title="poolrt doctor")
    for column in ("verdict", "check", "evidence", "fix"):
        table.add_column(column, overflow="fold")
    for verdict in ("fail", "warn", "ok"):
        for check in checks:
            if check.verdict == verdict:
                style = _STYLES[verdict]
                table.add_row(Text(verdict, style=style), Text(check.id), Text(check.evidence), Text(check.fix))
    out.print(table)
    for check in checks:
        if check.verdict == "unknown":
            out.print(
                Text(f"not seen: {check.id}: {check.evidence}{f'; {check.fix}' if check.fix else ''}", style="dim")
            )
    for sentence in machine.unseen:
        out.print(Text(f"not seen: {sentence}", style="dim"))
    if machine.host.root is False:
        out.print(Text("not root: the ACS settings of bridges and the kernel log could not be seen", style="dim"))
    counts = Counter[str](check.verdict for check in checks)
    out.print(Text(", ".join(f"{counts[verdict]} {verdict}" for verdict in _STYLES)))


def _with_proofs(machine: Machine, *, probe: bool) -> tuple[Machine, list[Check]]:
    """What copies showed: now if they are to be made, else when this machine was measured last."""
    if _wants_virtual_cards() or not machine.cards:
        return machine, [_proof_of_virtual_cards()] if probe else []
    topology = discover_cuda()
    if not probe:
        found = recalled(topology)
        return (with_measurement(machine, topology, found) if found else machine), []
    with sent_nbytes_of(machine, topology) as sent_nbytes:
        found = measured(topology, effort=QUICK, fresh=True, sent_nbytes=sent_nbytes)
    return with_measurement(machine, topology, found), []


def _proof_of_virtual_cards() -> Check:
    """The cards that stand in for GPUs here, named as what they are."""
    topology = discover()
    check = copies_arrive(proofs_of_virtual_cards(topology, measured(topology, effort=QUICK, fresh=True)))
    return replace(check, evidence=f"virtual cards: {check.evidence}")


def _wants_virtual_cards() -> bool:
    wanted = os.environ.get("POOLRT_CARDS")
    return bool(wanted) and isinstance(parse_cards(str(wanted)), VirtualRequest)


def _this_machine() -> Machine:
    machine = read_everything(Sources.of_this_machine(watch_s=_WATCH_S))
    return replace(machine, driver=replace(machine.driver, toolkit_version=_toolkit_version()))


def _toolkit_version() -> tuple[int, int] | None:
    """The CUDA that torch was built with."""
    if torch.version.cuda is None:
        return None
    major, minor = torch.version.cuda.split(".")[:2]
    return int(major), int(minor)
