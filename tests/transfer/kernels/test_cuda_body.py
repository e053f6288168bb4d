"""The kernels in CUDA C++: run as host code by every machine with g++, compiled for every card where there is nvcc."""

import shutil
from collections.abc import Iterator

import pytest
from transfer.kernels.bodies import Body, build_host_library, worker
from transfer.kernels.conformance import Conformance

from poolrt.transfer.kernels.launch import Lanes


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
