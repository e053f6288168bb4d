"""The pool on the HOST driver, in C++, under the sanitizers: addresses and undefined behaviour, then threads."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CASE_FILES = sorted(HERE.glob("pool_*_cases.cpp"))
CASES = [case for file in CASE_FILES for case in re.findall(r"^CASE\((\w+)\)", file.read_text(), re.MULTILINE)]
OF_ONE_THREAD = re.findall(r"^CASE\((\w+)\)", (HERE / "pool_faults_cases.cpp").read_text(), re.MULTILINE)
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pool") / request.param
    core = ("host_*.cpp", "vmm.cpp", "pool*.cpp", "torch_allocator.cpp")
    sources = [source for pattern in core for source in sorted((ROOT / "csrc").glob(pattern))]
    unit = target.with_suffix(".cpp")  # compiled as one: reading the standard headers is most of the work
    unit.write_text("".join(f'#include "{path}"\n' for path in (HERE / "cases_main.cpp", *sources, *CASE_FILES)))
    flags = ["-std=c++17", "-O0", "-g1", "-fno-sanitize-recover=all", "-pthread"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    subprocess.run(["g++", *flags, SANITIZERS[request.param], *includes, str(unit), "-o", str(target)], check=True)
    return target


def test_every_case_is_run(program):
    listed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert sorted(listed) == sorted(CASES)
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_case(program, case):
    if program.name == "thread" and case in OF_ONE_THREAD:
        pytest.skip("one thread alone")
    # setarch -R: the thread sanitizer of some compilers does not know the address layout of newer kernels.
    command = [str(program), case]
    if shutil.which("setarch") and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0:
        command = ["setarch", "-R", *command]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
