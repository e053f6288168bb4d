"""Builds the test programs of the compiled part and runs their cases."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent / "csrc"
CSRC = Path(__file__).parents[1] / "csrc"
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


def cases_in(files: Sequence[Path]) -> list[str]:
    """The names of the cases in these files, in order."""
    return [case for file in files for case in re.findall(r"^CASE\((\w+)\)", file.read_text(), re.MULTILINE)]


def build(target: Path, files: Sequence[Path], sanitizer: str) -> Path:
    """Compile `files` and the cases' main function into the program `target`, under a key of SANITIZERS."""
    unit = target.with_suffix(".cpp")  # compiled as one: reading the standard headers is most of the work
    unit.write_text("".join(f'#include "{path}"\n' for path in (HERE / "cases_main.cpp", *files)))
    flags = ["-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all", "-pthread"]
    command = ["g++", *flags, SANITIZERS[sanitizer], f"-I{CSRC}", f"-I{HERE}", str(unit), "-o", str(target), "-ldl"]
    subprocess.run(command, check=True)
    return target


def listed_cases(program: Path) -> list[str]:
    """What the program says its cases are."""
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()


def run(program: Path, case: str, environment: dict[str, str] | None = None) -> None:
    """Run one case; an AssertionError tells what it printed if it failed."""
    command = [*_at_known_addresses(), str(program), case]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert finished.returncode == 0, finished.stderr


@cache
def _at_known_addresses() -> tuple[str, ...]:
    """The thread sanitizer of some compilers does not know the address layout of newer kernels."""
    known = shutil.which("setarch") and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    return ("setarch", "-R") if known else ()
