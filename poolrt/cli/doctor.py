"""`poolrt doctor`: why do the cards not work together as they could?"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolrt.cli.pasted import add_from_option, print_remarks, read_from
from poolrt.cli.terminal import console
from poolrt.topology.discover import Sources, read_everything
from poolrt.topology.doctor.check import Check
from poolrt.topology.doctor.examine import examine, exit_code
from poolrt.topology.facts import Machine

NAME = "doctor"
HELP = (
    "look for what keeps the cards from working together: verdict, evidence, fix; exit code 0 ok, 1 warning, 2 failure"
)

SCHEMA = 1
_WATCH_S = 0.5
_STYLES = {"fail": "bold red", "warn": "yellow", "ok": "green", "unknown": "dim"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt doctor`."""
    add_from_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, schema 1")


def run(options: argparse.Namespace) -> int:
    """Examine this machine, or one that was pasted.

    Raises:
        ConfigurationError: if the text cannot be read or tells of no card.
    """
    reading = read_from(options.from_file) if options.from_file else None
    machine = reading.machine if reading else _this_machine()
    checks = examine(machine)
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


def _this_machine() -> Machine:
    machine = read_everything(Sources.of_this_machine(watch_s=_WATCH_S))
    return replace(machine, driver=replace(machine.driver, toolkit_version=_toolkit_version()))


def _toolkit_version() -> tuple[int, int] | None:
    """The CUDA that torch was built with."""
    if torch.version.cuda is None:
        return None
    major, minor = torch.version.cuda.split(".")[:2]
    return int(major), int(minor)
