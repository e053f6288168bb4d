"""The pool on the HOST driver, in C++, under the sanitizers: addresses and undefined behaviour, then threads."""

import shutil
from pathlib import Path

import pytest
from compiled_program import CSRC, HERE, SANITIZERS, build, cases_in, listed_cases, run

CASE_FILES = sorted(HERE.glob("pool_*_cases.cpp"))
CASES = cases_in(CASE_FILES)
OF_ONE_THREAD = cases_in([HERE / "pool_faults_cases.cpp"])
CORE = ("host_*.cpp", "vmm.cpp", "pool*.cpp", "torch_allocator.cpp")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pool") / request.param
    sources = [source for pattern in CORE for source in sorted(CSRC.glob(pattern))]
    return build(target, [*sources, *CASE_FILES], request.param)


def test_every_case_is_run(program):
    assert sorted(listed_cases(program)) == sorted(CASES)
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_case(program, case):
    if program.name == "thread" and case in OF_ONE_THREAD:
        pytest.skip("one thread alone")
    run(program, case)
