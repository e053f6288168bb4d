"""The CUDA driver in C++: on a fake libcuda that checks how it is called, and on the real one where there is a GPU."""

import os
import shutil
import subprocess
from ctypes.util import find_library
from pathlib import Path

import pytest
from compiled_program import CSRC, HERE, build, cases_in, listed_cases, run

SOURCES = sorted(CSRC.glob("cuda_*.cpp"))
BOTH = HERE / "cuda_driver_cases.cpp"
FAKE_ONLY = HERE / "cuda_fake_cases.cpp"
OLD = HERE / "cuda_old_cases.cpp"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def build_fake(folder: Path, *flags: str) -> dict[str, str]:
    """Build the fake libcuda.so.1 in `folder`; the environment in which it is the one that is found."""
    command = ["g++", "-std=c++17", "-Og", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=default", *flags]
    subprocess.run([*command, HERE / "fake_cuda.cpp", "-o", folder / "libcuda.so.1"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("cuda_driver") / "program"
    return build(target, [BOTH, FAKE_ONLY, OLD, *SOURCES], "address")


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> dict[str, str]:
    return build_fake(tmp_path_factory.mktemp("fake_cuda"))


@pytest.fixture(scope="module")
def old_fake(tmp_path_factory) -> dict[str, str]:
    return build_fake(tmp_path_factory.mktemp("old_fake_cuda"), "-DWITHOUT_PAGES")


def test_every_case_is_run(program):
    assert sorted(listed_cases(program)) == sorted(cases_in([BOTH, FAKE_ONLY, OLD]))
    assert len(cases_in([BOTH])) >= 5
    assert len(cases_in([FAKE_ONLY])) >= 10


@pytest.mark.parametrize("case", cases_in([BOTH, FAKE_ONLY]))
def test_case_on_the_fake_library(program, fake, case):
    run(program, case, fake)


@pytest.mark.parametrize("case", cases_in([OLD]))
def test_case_on_a_fake_library_without_pages(program, old_fake, case):
    run(program, case, old_fake)


@pytest.mark.gpu
@pytest.mark.skipif(find_library("cuda") is None, reason="no CUDA driver is installed")
@pytest.mark.parametrize("case", cases_in([BOTH]))
def test_case_on_the_real_library(program, case):
    # A real libcuda maps memory where the address sanitizer would keep its shadow's gap.
    run(program, case, {**os.environ, "ASAN_OPTIONS": "protect_shadow_gap=0:detect_leaks=0"})


def cuda_headers() -> list[Path]:
    """Folders with the <cuda.h> of a toolkit: beside nvcc, or where toolkits are installed."""
    nvcc = shutil.which("nvcc")
    beside = [Path(os.path.realpath(nvcc)).parents[1] / "include"] if nvcc else []
    return [
        folder
        for folder in (*beside, *sorted(Path("/usr/local").glob("cuda*/include")))
        if (folder / "cuda.h").exists()
    ]


@pytest.mark.skipif(not cuda_headers(), reason="no <cuda.h> on this machine")
def test_the_types_and_numbers_are_those_of_cuda_h():
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run([*command, "-isystem", cuda_headers()[0], HERE / "cuda_abi_check.cpp"], check=True)
