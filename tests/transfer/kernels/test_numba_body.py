"""The kernels in Python, on Numba's simulator of a card: one Python thread per thread, so launches are small."""

from collections.abc import Iterator

import pytest
from transfer.kernels.bodies import Body, worker
from transfer.kernels.conformance import Conformance

from poolrt.transfer.kernels.launch import Lanes

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Body]:
    with worker("numba", Lanes(threads=8, most_blocks=3), examples=15) as body:
        yield body


class TestNumbaOnTheSimulator(Conformance):
    @pytest.fixture
    def body(self, simulator: Body) -> Body:
        return simulator
