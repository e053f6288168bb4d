"""The kernels' bodies as tests use them: each takes a launch and two buffers, and tells what the target holds then."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transfer.kernels.kernel_list import for_host

from poolrt.transfer.kernels.dtypes import NAMES
from poolrt.transfer.kernels.launch import Lanes, Launch, ManyLaunch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Body(Protocol):
    """One implementation of the kernels, on a card or on what stands for one."""

    lanes: Lanes
    """how many threads a launch of a test should have"""
    examples: int
    """how many random cases are worth their time"""
    partners: int
    """how many source types each target type meets; a card compiles a kernel for each"""

    def run(self, launch: Launch, target: bytes, source: bytes) -> bytes: ...

    def run_many(self, launch: ManyLaunch, target: bytes, source: bytes) -> bytes: ...

    def hold(self, flag: int, limit_ns: int, nap_ns: int) -> int: ...


class WorkerBody:
    """A body in a process of its own, see worker.py."""

    partners = len(NAMES)

    def __init__(self, process: subprocess.Popen[bytes], lanes: Lanes, examples: int):
        self._process = process
        self.lanes, self.examples = lanes, examples

    def _ask(self, name: str, *arguments: Any) -> Any:
        pickle.dump((name, arguments), self._process.stdin)
        self._process.stdin.flush()
        try:
            answer, error = pickle.load(self._process.stdout)
        except EOFError:
            raise AssertionError(f"the worker ended with {self._process.wait()}, see its words above") from None
        assert error is None, error
        return answer

    def run(self, launch, target, source):
        return self._ask("run", launch, target, source)

    def run_many(self, launch, target, source):
        return self._ask("run_many", launch, target, source)

    def hold(self, flag, limit_ns, nap_ns):
        return self._ask("hold", flag, limit_ns, nap_ns)


@contextmanager
def worker(argument: str, lanes: Lanes, examples: int) -> Iterator[WorkerBody]:
    """A worker for as long as the context lasts."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "worker.py"), argument]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield WorkerBody(process, lanes, examples)
        finally:
            process.stdin.close()


def build_host_library(folder: Path) -> Path:
    """csrc/kernels.cu as a library of host code; the sanitizer finds misaligned loads and undefined arithmetic."""
    kernels, library = folder / "kernel_list.inc", folder / "libkernels.so"
    kernels.write_text(for_host())
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'csrc'}", f'-DKERNEL_LIST="{kernels}"']
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # of loops to unroll
    flags = ["-std=c++17", "-O0", "-fno-strict-aliasing", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    source = ROOT / "tests" / "csrc" / "kernels_library.cpp"
    command = ["g++", *flags, *warnings, *includes, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library
