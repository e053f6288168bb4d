"""Where tables go."""

from __future__ import annotations

import sys

from rich.console import Console

_WIDTH_OF_A_FILE = 120


def console() -> Console:
    """Standard output: as wide as the terminal, 120 columns into a file or a pipe."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, highlight=False)
