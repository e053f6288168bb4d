"""The HOST driver by itself, in C++, under the sanitizers: addresses and undefined behaviour, then threads."""

import shutil
from pathlib import Path

import pytest
from compiled_program import CSRC, HERE, SANITIZERS, build, cases_in, listed_cases, run

CASE_FILES = sorted(HERE.glob("host_*_cases.cpp"))
CASES = cases_in(CASE_FILES)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("host_driver") / request.param
    return build(target, [*CASE_FILES, *sorted(CSRC.glob("host_*.cpp"))], request.param)


def test_every_case_is_run(program):
    assert sorted(listed_cases(program)) == sorted(CASES)
    assert len(CASES) >= 35


@pytest.mark.parametrize("case", CASES)
def test_case(program, case):
    run(program, case)
