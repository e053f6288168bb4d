"""torch.vcard: the names and meanings of torch.cuda."""

import pytest
import torch

from poolrt.units import GIB, MIB


def test_cards():
    assert torch.vcard.is_available()
    assert torch.vcard.device_count() == 2
    assert torch.vcard.get_device_name(1) == "virtual card"
    assert torch.vcard.get_device_properties("vcard:1").total_memory == GIB
    assert torch.get_device_module("vcard") is torch.vcard
    assert torch.accelerator.current_accelerator() == torch.device("vcard")
    assert torch.accelerator.device_count() == 2


def test_current_card():
    with torch.vcard.device(1):
        assert torch.vcard.current_device() == 1
        assert torch.ones(1, device="vcard").device.index == 1
        with torch.vcard.device(-1):
            assert torch.vcard.current_device() == 1
    assert torch.vcard.current_device() == 0
    with torch.vcard.device_of(torch.ones(1, device="vcard:1")):
        assert torch.vcard.current_device() == 1
    with torch.vcard.device_of(torch.ones(1)):
        assert torch.vcard.current_device() == 0
    torch.vcard.set_device("vcard:1")
    assert torch.ones(1, device="vcard").device.index == 1
    with torch.device("vcard:0"):
        assert torch.ones(1).device == torch.device("vcard:0")


@pytest.mark.parametrize("device", [2, -1, "vcard:2", "vcard:7"])
def test_a_card_that_is_not_there(device):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.vcard.memory_allocated(device)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.vcard.set_device(device)


def test_another_kind_of_device():
    with pytest.raises(ValueError, match="cpu"):
        torch.vcard.memory_allocated("cpu")


def test_memory():
    before = torch.vcard.memory_allocated(1)
    torch.vcard.reset_peak_memory_stats(1)
    x = torch.empty(1000, device="vcard:1")
    assert torch.vcard.memory_allocated("vcard:1") - before == 4096
    assert torch.vcard.memory_reserved(1) == torch.vcard.memory_allocated(1)
    assert torch.vcard.mem_get_info(1) == (GIB - before - 4096, GIB)
    stats = torch.vcard.memory_stats(1)
    assert stats["allocated_bytes.all.current"] == before + 4096
    del x
    assert torch.vcard.memory_allocated(1) == before
    assert torch.vcard.max_memory_allocated(1) == before + 4096
    assert torch.vcard.max_memory_reserved(1) == before + 4096
    torch.vcard.reset_peak_memory_stats(1)
    assert torch.vcard.max_memory_allocated(1) == before
    torch.vcard.empty_cache()


def test_torchs_own_view_of_the_memory():
    x = torch.empty(1000, device="vcard:0")
    assert torch.accelerator.memory_allocated(0) == torch.vcard.memory_allocated(0) == 4096
    assert torch.accelerator.get_memory_info(0) == torch.vcard.mem_get_info(0)
    del x


def test_refusals_are_counted():
    refused = torch.vcard.memory_stats(0)["num_ooms"]
    torch.vcard.set_capacity(0, MIB)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * MIB, device="vcard:0")
    assert torch.vcard.memory_stats(0)["num_ooms"] == refused + 1


def test_streams_and_events():
    stream = torch.vcard.current_stream(1)
    assert stream.device == torch.device("vcard:1")
    start, end = torch.Event("vcard:0", enable_timing=True), torch.Event("vcard:0", enable_timing=True)
    with torch.vcard.stream(torch.vcard.Stream(device="vcard:0")):
        start.record()
        torch.ones(10, device="vcard:0").sum()
        end.record()
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) > 0
    torch.vcard.synchronize()
    torch.accelerator.synchronize()
    x = torch.ones(1, device="vcard:0")
    x.record_stream(stream)
