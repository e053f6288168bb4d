"""Compiles the virtual-card backend against the installed torch, once, and keeps it.

The library fits one torch version only, so a wheel cannot carry it: the wheel carries its sources (poolrt/csrc), a
checkout has them in csrc/. What was built is kept under `$POOLRT_CACHE_DIR` (default ~/.cache/poolrt), in a folder
named by everything it depends on.

Most of a build is reading torch's headers, so sources are compiled in two groups at once instead of one by one: 17 s of
work each, instead of 85 s altogether.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from rich.console import Console

from poolrt.errors import BuildError
from poolrt.keeping import cache_directory

_LAST_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what a build makes."""

    name: str
    """What the library is called: lib<name>.so."""
    description: str
    """For the progress line."""
    compiler: str
    units: tuple[tuple[Path, ...], ...]
    """Groups of source files. A group is compiled as one; the groups are compiled at the same time."""
    headers: tuple[Path, ...] = ()
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()
    environment: str = ""
    """Versions of what the library is built against."""

    def key(self) -> str:
        """A name for the result that changes with the sources, the flags, the compiler and the environment."""
        digest = hashlib.sha256()
        for text in (self.environment, _version_of(self.compiler), *self.compile_flags, *self.link_flags):
            digest.update(text.encode() + b"\0")
        for path in (*chain.from_iterable(self.units), *self.headers):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def virtual_card_library() -> Path:
    """The virtual-card backend for the installed torch, built now if it has not been.

    Raises:
        BuildError: without a C++ compiler, or if compilation fails; the message holds the compiler's last lines.
    """
    return build(virtual_card_recipe(), cache_directory())


def virtual_card_recipe() -> Recipe:
    """How the backend is built against the installed torch.

    Raises:
        BuildError: without a C++ compiler, or without the sources.
    """
    torch_directory = Path(torch.__file__).parent
    include = torch_directory / "include"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    folder = source_directory()
    autocast = folder / "vcard_autocast.cpp"  # reads all of torch's operators: as much work as the others together
    return Recipe(
        name="poolrt_vcard",
        description=f"the virtual-card backend for torch {torch.__version__}",
        compiler=find_compiler(),
        units=((autocast,), tuple(source for source in sorted(folder.glob("vcard_*.cpp")) if source != autocast)),
        headers=tuple(sorted([*folder.glob("vcard_*.hpp"), folder / "driver.hpp", folder / "pool_table.hpp"])),
        compile_flags=(
            "-std=c++20" if version >= (2, 12) else "-std=c++17",
            *("-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-w", "-DAT_PER_OPERATOR_HEADERS"),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            *(f"-isystem{path}" for path in (include, include / "torch" / "csrc" / "api" / "include")),
        ),
        link_flags=(f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-lc10"),
        environment=f"torch {torch.__version__} {torch.version.git_version}",
    )


def source_directory() -> Path:
    """Where the C++ sources are: inside an installed package, or beside the package in a checkout.

    Raises:
        BuildError: if they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "csrc", package.parent / "csrc")
    for candidate in candidates:
        if (candidate / "driver.hpp").is_file() and (candidate / "vcard_load.cpp").is_file():
            return candidate
    places = " nor ".join(str(candidate) for candidate in candidates)
    raise BuildError(f"the sources of the virtual-card backend are neither in {places}; reinstall poolrt")


def find_compiler() -> str:
    """`$CXX`, or g++, or c++: the first that is there.

    Raises:
        BuildError: if none is.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    for name in wanted:
        if path := shutil.which(name):
            return path
    raise BuildError(
        f"virtual cards need a C++ compiler at first use, and {' or '.join(wanted)} is not on the PATH; "
        "install one (Debian and Ubuntu: apt install g++) or name one in the environment variable CXX"
    )


def build(recipe: Recipe, cache: Path) -> Path:
    """The library that `recipe` makes, from `cache` or built into it.

    Processes that build the same recipe at the same time wait for the first; a library appears whole or not at all.

    Raises:
        BuildError: if compilation fails, or the cache cannot be written.
    """
    target = cache / f"{recipe.name}-{recipe.key()}" / f"lib{recipe.name}.so"
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock"):
            if not target.is_file():
                _build_into(recipe, target)
    except OSError as error:
        raise BuildError(
            f"cannot build in {target.parent}: {error}; set POOLRT_CACHE_DIR to a folder of yours"
        ) from error
    return target


def _build_into(recipe: Recipe, target: Path) -> None:
    console = Console(file=sys.stderr)
    console.print(f"poolrt: building {recipe.description}, about 20 s, once", style="dim", highlight=False)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        objects = _compile_all(recipe, Path(scratch))
        unfinished = Path(scratch) / target.name
        _run([recipe.compiler, "-shared", "-o", str(unfinished), *map(str, objects), *recipe.link_flags])
        os.replace(unfinished, target)
    elapsed_s = time.monotonic() - began_s
    console.print(f"poolrt: built in {elapsed_s:.0f} s, kept in {target.parent}", style="dim", highlight=False)


def _compile_all(recipe: Recipe, folder: Path) -> list[Path]:
    def compile_unit(number: int) -> Path:
        unit, compiled = folder / f"unit{number}.cpp", folder / f"unit{number}.o"
        unit.write_text("".join(f'#include "{source}"\n' for source in recipe.units[number]))
        _run([recipe.compiler, "-c", str(unit), "-o", str(compiled), *recipe.compile_flags])
        return compiled

    with ThreadPoolExecutor(max_workers=len(recipe.units)) as pool:
        return list(pool.map(compile_unit, range(len(recipe.units))))


def _run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        words = "\n".join((finished.stderr or finished.stdout).splitlines()[-_LAST_LINES:])
        raise BuildError(f"the compiler failed with exit code {finished.returncode}: {' '.join(command)}\n{words}")


def _version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(virtual_card_library())
