"""Builds and runs allocator_cpp.cpp: what the pool takes by itself, with no Python and no torch around it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("allocator_cpp.cpp")
FOREIGN = ("vcard", "bind", "torch_allocator")
"""sources that need torch or Python"""


def measure_cpp(
    sizes: Sequence[int], *, rounds: int, pairs: int, cuda: bool, optimize: str = "-O2"
) -> list[dict[str, Any]]:
    """Rows of the C++ program, one per contender and size: `round_s` (seconds per pair), `p99_s`, `driver_calls`.

    Args:
        sizes: of the blocks, in bytes.
        rounds: how often each is measured, in turn.
        pairs: of an allocation and its free in one round; a hundredth of it where every pair goes to the driver.
        cuda: the pool over the first GPU instead of host memory.
        optimize: the compiler's level.

    Raises:
        RuntimeError: if it cannot be built or ends with an error; the message holds what was said.
    """
    with tempfile.TemporaryDirectory(prefix="poolrt-bench-") as folder:
        program = Path(folder) / "allocator_cpp"
        _checked(
            ["g++", "-std=c++17", optimize, "-pthread", f"-I{ROOT / 'csrc'}", *_sources(), "-ldl", "-o", str(program)]
        )
        table = "CUDA" if cuda else "HOST"
        counts = (rounds, pairs, max(1, pairs // 100), *sizes)
        rows: list[dict[str, Any]] = json.loads(_checked([str(program), table, *map(str, counts)]))
    return rows


def _sources() -> list[str]:
    own = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if not path.name.startswith(FOREIGN)]
    return [str(path) for path in (PROGRAM, *own)]


def _checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout
