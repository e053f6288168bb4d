"""The copy kernels on a GPU: both bodies pass the suite that they pass without one, and torch's tensors go through."""

import shutil
import time

import numpy
import pytest
import torch
from transfer.kernels.bodies import Body
from transfer.kernels.conformance import Conformance
from transfer.kernels.kernel_list import each_type_once, for_cuda
from transfer.kernels.worker import SOURCE_BASE, TARGET_BASE

from poolrt.errors import ConfigurationError
from poolrt.transfer import kernels
from poolrt.transfer.kernels.launch import Lanes
from poolrt.transfer.kernels.source import kernel_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DEVICE = "cuda:0"


@pytest.fixture(autouse=True)
def kernels_serve() -> None:
    if reason := kernels.available(DEVICE):
        pytest.skip(reason)


def on_card(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(DEVICE) if data else torch.empty(0, device=DEVICE)


class CudaBody:
    """csrc/kernels.cu through cupy. Addresses of plans become those of buffers on the card."""

    lanes, examples, partners = Lanes(threads=64, most_blocks=5), 200, 4

    def run(self, launch, target, source):
        from poolrt.transfer.kernels import cuda_body

        into, given = on_card(target), on_card(source)
        cuda_body.run(moved(launch, into, given), 0, torch.cuda.current_stream().cuda_stream)
        return into.cpu().numpy().tobytes()

    def run_many(self, launch, target, source):
        from poolrt.transfer.kernels import cuda_body

        into, given = on_card(target), on_card(source)
        table = torch.from_numpy(launch.table).to(DEVICE)
        stream = torch.cuda.current_stream().cuda_stream
        cuda_body.run_many(moved(launch, into, given), table.data_ptr(), 0, stream)
        return into.cpu().numpy().tobytes()

    def hold(self, flag, limit_ns, nap_ns):
        from poolrt.transfer.kernels import cuda_body

        flags = torch.tensor([flag], dtype=torch.int32).pin_memory()
        outcome = torch.zeros(1, dtype=torch.int32).pin_memory()
        stream = torch.cuda.current_stream().cuda_stream
        cuda_body.hold(outcome.data_ptr(), flags.data_ptr(), limit_ns, nap_ns, 0, stream)
        torch.cuda.synchronize()
        return int(outcome[0])


class NumbaBody:
    """numba_body, as Numba compiles it for a card."""

    lanes, examples, partners = Lanes(threads=64, most_blocks=5), 40, 2

    def run(self, launch, target, source):
        from poolrt.transfer.kernels import numba_body

        into, given = on_card(target), on_card(source)
        types = launch.types or ("word8", "word8")
        to = flat(into, launch.target_address - TARGET_BASE, types[-1])
        at = flat(given, launch.source_address - SOURCE_BASE, types[0])
        numba_body.run(launch, to, at)
        torch.cuda.synchronize()
        return into.cpu().numpy().tobytes()

    def run_many(self, launch, target, source):
        from poolrt.transfer.kernels import numba_body

        into, given = on_card(target), on_card(source)
        to = flat(into, launch.target_address - TARGET_BASE, "word8")
        at = flat(given, launch.source_address - SOURCE_BASE, "word8")
        numba_body.run_many(launch, device_array(torch.from_numpy(launch.table).to(DEVICE).ravel()), to, at)
        torch.cuda.synchronize()
        return into.cpu().numpy().tobytes()

    def hold(self, flag, limit_ns, nap_ns):
        from poolrt.transfer.kernels import numba_body

        outcome = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        flags = torch.tensor([flag], dtype=torch.int32, device=DEVICE)
        numba_body.hold[1, 1](device_array(outcome), device_array(flags), limit_ns, nap_ns)
        torch.cuda.synchronize()
        return int(outcome[0])


def moved(launch, into: torch.Tensor, given: torch.Tensor):
    from dataclasses import replace

    return replace(
        launch,
        target_address=launch.target_address - TARGET_BASE + into.data_ptr(),
        source_address=launch.source_address - SOURCE_BASE + given.data_ptr(),
    )


class _Memory:
    """Bytes on the card as an array of another type, at any alignment."""

    def __init__(self, owner: torch.Tensor, offset: int, dtype: numpy.dtype):
        self._owner = owner
        count = (owner.nbytes - offset) // dtype.itemsize
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": dtype.str,
            "data": (owner.data_ptr() + offset, False),
            "shape": (count,),
            "strides": None,
        }


def flat(tensor: torch.Tensor, offset: int, name: str):
    from numba import cuda

    from poolrt.transfer.kernels.numba_numbers import storage_dtype

    return cuda.as_cuda_array(_Memory(tensor, offset, storage_dtype(name)))


def device_array(tensor: torch.Tensor):
    from numba import cuda

    return cuda.as_cuda_array(tensor)


class TestCudaOnACard(Conformance):
    @pytest.fixture
    def body(self) -> Body:
        return CudaBody()


class TestNumbaOnACard(Conformance):
    @pytest.fixture
    def body(self) -> Body:
        cuda = pytest.importorskip("numba.cuda")
        if not cuda.is_available():
            pytest.skip("Numba cannot compile for this card")
        return NumbaBody()


@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16", "int64", "complex64"])
def test_copies_and_sums_have_the_bits_of_torch_on_the_card(target):
    for source in ("float32", "bfloat16", "float64", "int32", "bool"):
        given = torch.randint(0, 100, (1001,), device=DEVICE).to(getattr(torch, source))
        into = torch.randint(0, 20, (1001,), device=DEVICE).to(getattr(torch, target))
        if given.is_floating_point():
            given = given / 7
        expected = into.clone()
        expected.copy_(given)
        found = into.clone()
        kernels.copy(given, found)
        assert torch.equal(found, expected), source
        try:
            expected = into.clone().add_(given)
        except RuntimeError:
            with pytest.raises(ConfigurationError):
                kernels.add(given, into)
            continue
        kernels.add(given, into)
        assert torch.equal(into, expected), source


def test_views_are_copied_within_one_tensor_where_they_do_not_meet():
    tensor = torch.arange(1000.0, device=DEVICE)
    kernels.copy(tensor[1::2], tensor[::2])
    assert torch.equal(tensor[::2], tensor[1::2])
    with pytest.raises(ConfigurationError):
        kernels.copy(tensor[:500], tensor[250:750])
    with pytest.raises(ConfigurationError):
        kernels.copy(tensor[:10], tensor[:1].expand(10))


def test_many():
    sources = [torch.rand(n, device=DEVICE) for n in range(0, 3000, 7)]
    targets = [torch.zeros_like(source) for source in sources]
    kernels.copy_many(list(zip(sources, targets, strict=True)))
    assert all(map(torch.equal, sources, targets))


def test_work_is_in_the_current_stream():
    """A held side stream keeps its copy back; the default stream's is done meanwhile."""
    source, held, free = torch.ones(5000, device=DEVICE), *(torch.zeros(5000, device=DEVICE) for _ in range(2))
    torch.cuda.synchronize()
    side = torch.Stream(device=DEVICE)
    with side, kernels.Latch(DEVICE) as latch:
        kernels.copy(source[::2], held[::2])
        with torch.cuda.stream(torch.cuda.default_stream()):
            kernels.copy(source[::2], free[::2])
            seen = free.sum().item()
            still = side.query()
    side.synchronize()
    assert latch.held
    assert (seen, still) == (2500, False)
    assert held.sum().item() == 2500


def test_a_latch_opens_by_itself():
    with kernels.Latch(DEVICE, limit_s=0.01) as latch:
        deadline = time.monotonic() + 10
        while not torch.cuda.current_stream().query() and time.monotonic() < deadline:
            time.sleep(0.001)
        passed = torch.cuda.current_stream().query()
    assert passed
    assert not latch.held


def test_a_peers_tensor_is_read():
    if torch.cuda.device_count() < 2 or not torch.cuda.can_device_access_peer(0, 1):
        pytest.skip("needs two cards that reach each other")
    source = torch.rand(301, 200, device="cuda:1")
    target = torch.zeros(200, 301, device=DEVICE, dtype=torch.bfloat16)
    kernels.copy(source.t(), target)
    assert torch.equal(target.cpu(), source.t().bfloat16().cpu())


@pytest.mark.skipif(shutil.which("nvcc") is not None, reason="nvcc compiles it in another test")
@pytest.mark.parametrize("capability", ["75", "80", "86", "89", "90", "100", "120"])
def test_the_source_compiles_by_nvrtc(capability):
    from cupy.cuda import compiler

    text = kernel_source() + for_cuda(*each_type_once())
    compiled, _ = compiler.compile_using_nvrtc(text, ("-std=c++17",), arch=capability)
    assert compiled
