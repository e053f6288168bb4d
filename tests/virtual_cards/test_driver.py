"""poolrt._C: the driver tables as Python objects."""

from ctypes.util import find_library

import pytest
import torch

from poolrt import _C
from poolrt.errors import DriverError
from poolrt.units import MIB


@pytest.fixture
def driver():
    host = _C.host_driver()
    host.configure([MIB, 2 * MIB])
    return host


def test_what_a_driver_answers(driver):
    assert driver.name == "HOST"
    assert driver.device_count() == 2
    assert [driver.total_memory(card) for card in range(2)] == [MIB, 2 * MIB]
    assert driver.memory_info(1) == (2 * MIB, 2 * MIB)
    assert driver.device_name(0) == "virtual card"


def test_ledger_of_a_block(driver):
    before = driver.ledger(1)
    address = driver.memory_allocate(1, 1000)
    during = driver.ledger(1)
    driver.memory_free(address)
    assert address % 64 == 0
    assert (during.used_nbytes, during.capacity_nbytes) == (before.used_nbytes + 1024, 2 * MIB)
    assert during.allocation_count == before.allocation_count + 1
    assert driver.ledger(1).used_nbytes == before.used_nbytes
    assert driver.ledger(1).peak_nbytes >= 1024
    driver.reset_peak(1)
    assert driver.ledger(1).peak_nbytes == before.used_nbytes


def test_peers_are_reachable_in_one_direction_at_a_time(driver):
    driver.set_peer(0, 1, False)
    assert not driver.can_access_peer(0, 1)
    assert driver.can_access_peer(1, 0)
    driver.configure([MIB, MIB])
    assert driver.can_access_peer(0, 1)


def test_the_host_has_a_limit_only_if_it_is_given_one(driver):
    driver.set_host_capacity(3 * MIB)
    assert driver.ledger().capacity_nbytes == driver.ledger(_C.HOST_MEMORY).capacity_nbytes == 3 * MIB
    driver.set_host_capacity(None)
    unlimited = driver.ledger().capacity_nbytes
    driver.set_host_capacity(3 * MIB)
    driver.configure([MIB])
    assert driver.ledger().capacity_nbytes == unlimited > 2**60
    assert driver.ledger().used_nbytes == 0


def test_a_fault_makes_the_chosen_calls_fail(driver):
    before = driver.calls()
    driver.set_fault(at_call=2, status=2, count=2)
    try:
        assert driver.granularity(0) == 2 * MIB
        for _ in range(2):
            with pytest.raises(DriverError, match="OUT_OF_MEMORY"):
                driver.granularity(0)
        assert driver.granularity(_C.HOST_MEMORY) == 2 * MIB
        driver.set_fault(at_call=1, status=304)
    finally:
        driver.clear_fault()
    assert driver.granularity(0) == 2 * MIB
    assert driver.calls() == before + 5


def test_a_stream_is_held_and_let_go(driver):
    before = driver.page_state().stream_count
    stream = driver.stream_create(0)
    driver.stream_hold(stream)
    assert driver.page_state().stream_count == before + 1
    with pytest.raises(DriverError, match="INVALID_VALUE"):
        driver.stream_destroy(stream)
    driver.stream_pass(stream)
    driver.stream_destroy(stream)
    with pytest.raises(DriverError, match="INVALID_HANDLE"):
        driver.stream_pass(stream)
    assert driver.default_stream(0) != driver.default_stream(1)
    assert driver.page_state().stream_count == before


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda driver: driver.memory_allocate(0, 2 * MIB), "OUT_OF_MEMORY"),
        (lambda driver: driver.total_memory(2), "INVALID_DEVICE"),
        (lambda driver: driver.memory_info(-1), "INVALID_DEVICE"),
        (lambda driver: driver.set_peer(0, 0, True), "INVALID_DEVICE"),
        (lambda driver: driver.granularity(2), "INVALID_DEVICE"),
        (lambda driver: driver.stream_create(_C.HOST_MEMORY), "INVALID_DEVICE"),
        (lambda driver: driver.stream_hold(0), "INVALID_HANDLE"),
        (lambda driver: driver.set_fault(at_call=0), "INVALID_VALUE"),
        (lambda driver: driver.configure([]), "INVALID_VALUE"),
        (lambda driver: _C.link_state(0, 2), "INVALID_DEVICE"),
        (lambda driver: _C.link_set_model(0, 0, 1e9), "INVALID_DEVICE"),
        (lambda driver: _C.link_set_fault(0, 1, 7), "INVALID_VALUE"),
        (lambda driver: driver.configure([MIB] * (_C.MAX_CARDS + 1)), "INVALID_VALUE"),
    ],
)
def test_a_failed_call_tells_its_status(driver, call, name):
    with pytest.raises(DriverError) as caught:
        call(driver)
    assert caught.value.name == name
    assert caught.value.code != 0
    assert name in str(caught.value)


@pytest.mark.skipif(find_library("cuda") is not None, reason="a CUDA driver is installed")
def test_without_a_cuda_driver_the_error_says_what_to_do():
    with pytest.raises(DriverError, match=r"libcuda\.so\.1.*virtual") as caught:
        _C.cuda_driver()
    assert caught.value.name == "NOT_FOUND"


@pytest.mark.gpu
@pytest.mark.skipif(find_library("cuda") is None, reason="no CUDA driver is installed")
def test_the_cuda_driver_answers_as_torch_does():
    driver = _C.cuda_driver()
    assert driver.name == "CUDA"
    assert driver.driver_version() >= 11000
    assert driver.device_count() == torch.cuda.device_count()
    for card in range(driver.device_count()):
        properties = torch.cuda.get_device_properties(card)
        assert driver.device_name(card) == properties.name
        assert driver.total_memory(card) >= properties.total_memory
        free_nbytes, total_nbytes = driver.memory_info(card)
        assert 0 < free_nbytes <= total_nbytes
