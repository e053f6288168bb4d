"""The option `--from FILE`: a machine out of text that somebody pasted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from poolrt.errors import ConfigurationError
from poolrt.topology.pasted.read import Reading, read_pasted

_MOST_REMARKS = 20


def add_from_option(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
    """Declare `--from`, kept as `from_file`."""
    parser.add_argument(
        "--from",
        dest="from_file",
        metavar="FILE",
        help="read pasted output of nvidia-smi (topo -m, topo -p2p r, nvlink -s, nvlink -R, -L, or none of these); "
        "'-' is standard input",
    )


def read_from(path: str) -> Reading:
    """The machine that a text tells of.

    Raises:
        ConfigurationError: if the file cannot be read, or tells of no card.
    """
    reading = read_pasted(_text(path))
    if not reading.machine.cards:
        raise ConfigurationError(
            f"{path} names no card; paste the output of `nvidia-smi topo -m`, `nvidia-smi nvlink -s` and the like"
        )
    return reading


def print_remarks(reading: Reading) -> None:
    """Name the lines that could not be used, on stderr; of a long log the first ones."""
    for remark in reading.remarks[:_MOST_REMARKS]:
        print(remark, file=sys.stderr)
    if len(reading.remarks) > _MOST_REMARKS:
        print(f"and {len(reading.remarks) - _MOST_REMARKS} more lines; --json names them all", file=sys.stderr)


def _text(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    return data.decode(errors="replace")
