"""`poolrt` and `python -m poolrt`.

A subcommand is a module of this folder with `NAME`, `HELP`, `add_options(parser)` and `run(options) -> exit code`,
named in COMMANDS. Exit code 2 also stands for an error, whose message goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from poolrt.cli import bench, doctor, plan, topo, verify
from poolrt.errors import PoolrtError


class Command(Protocol):
    """A subcommand's module."""

    NAME: str
    HELP: str

    def add_options(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare what the subcommand takes."""

    def run(self, options: argparse.Namespace, /) -> int:
        """Do it and return the exit code."""


COMMANDS: tuple[Command, ...] = (topo, doctor, plan, bench, verify)


def make_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand's options."""
    parser = argparse.ArgumentParser(
        prog="poolrt", description="Several GPUs train one model as if they were one card."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_options(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the words after the program's name; None takes them from the process.

    Returns:
        The subcommand's exit code, or 2 after an error.
    """
    options = make_parser().parse_args(arguments)
    try:
        return options.run(options)
    except PoolrtError as error:
        print(f"poolrt {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has gone (`poolrt topo | head -1`); nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
