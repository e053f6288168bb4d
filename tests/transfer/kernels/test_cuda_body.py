"""The kernels in CUDA C++: run as host code by every machine with g++, compiled for every card where there is nvcc."""

import shutil
import subprocess
from collections.abc import Iterator

import numpy
import pytest
from transfer.kernels.bodies import Body, build_host_library, worker
from transfer.kernels.conformance import Conformance
from transfer.kernels.kernel_list import each_type_once, for_cuda

from poolrt.transfer.kernels.cuda_body import expression, walk_struct
from poolrt.transfer.kernels.launch import Lanes, plan_add, plan_copy
from poolrt.transfer.kernels.source import kernel_source
from poolrt.transfer.kernels.walk import Walk
from poolrt.transfer.layout import Layout


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Body]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = build_host_library(tmp_path_factory.mktemp("kernels"))
    with worker(str(library), Lanes(threads=32, most_blocks=3), examples=120) as body:
        yield body


class TestCudaAsHostCode(Conformance):
    @pytest.fixture
    def body(self, host: Body) -> Body:
        return host


CARDS = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
"""Turing to Blackwell"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_source_compiles_for_every_card_that_nvcc_knows(tmp_path):
    known = subprocess.run(["nvcc", "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    cards = sorted(CARDS & set(known))
    source, compiled = tmp_path / "kernels.cu", tmp_path / "kernels.fatbin"
    source.write_text(kernel_source() + for_cuda(*each_type_once()))
    targets = [f"-gencode=arch={card.replace('sm', 'compute')},code={card}" for card in cards]
    command = ["nvcc", "-std=c++17", "-Werror", "all-warnings", *targets, "-fatbin", "-o", str(compiled), str(source)]
    subprocess.run(command, check=True)
    assert len(cards) >= 5
    assert compiled.stat().st_size > 10_000 * len(cards)


def test_the_source_is_one_text():
    assert "#include" not in kernel_source()
    assert "struct bfloat16" in kernel_source()


def test_a_kernels_name_is_a_template_with_its_arguments():
    side = {"item_nbytes": 4, "shape": (8,), "address": 0}
    launches = plan_copy(
        Layout(**side, strides=(1,)), "float32", Layout(**side, strides=(3,)), "float32", Lanes()
    ) + plan_add(Layout(**side, strides=(1,)), "float32", Layout(**side, strides=(3,)), "int32", Lanes())
    assert [expression(launch) for launch in launches] == [
        "copy_strided<word32, word32, 1, int32>",
        "add_strided<int32, float32, float32, 1, int32>",
    ]


def test_a_walk_is_handed_over_as_the_struct_of_the_source():
    struct = walk_struct(Walk(extents=(2, 3), target_strides=(3, 1), source_strides=(1, -2), source_start=4))
    assert struct.nbytes == 8 * (3 + 3 * 8)
    assert struct.view(numpy.int64).tolist() == [2, 0, 4, *[2, 3, *[0] * 6], *[3, 1, *[0] * 6], *[1, -2, *[0] * 6]]
