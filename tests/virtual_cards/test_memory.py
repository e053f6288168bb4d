"""The ledger counts what tensors hold, and a full card says so."""

from __future__ import annotations

import gc
import re

import pytest
import torch
from torch import nn

from poolrt.units import MIB


def used(card: int = 0) -> int:
    return torch.vcard.memory_allocated(card)


def test_results_temporaries_and_views():
    x = torch.ones(64 * 1024, device="vcard:0")  # 256 KiB
    before = used()
    views = [x.view(256, 256), x[10:20], x.t() if x.dim() == 2 else x.unsqueeze(0), x.expand(3, -1), x.detach()]
    assert used() == before
    torch.vcard.reset_peak_memory_stats(0)
    y = torch.nn.functional.gelu(x + 1)
    assert used() == before + 256 * 1024
    assert torch.vcard.max_memory_allocated(0) == before + 512 * 1024
    assert used(1) == 0
    del views, y
    assert used() == before


def test_what_a_kernel_allocates_inside_is_the_cards():
    x = torch.randn(512, 512, device="vcard:1")
    host = torch.ones(10)
    torch.vcard.reset_peak_memory_stats(1)
    before = used(1)
    torch.linalg.svd(x)
    assert torch.vcard.max_memory_allocated(1) >= before + 3 * 512 * 512 * 4 - 512 * 511 * 4
    assert used(1) == before
    del host


def test_host_tensors_are_free_of_charge():
    before = used(0), used(1)
    x = torch.randn(1000, 1000)
    y = x @ x
    assert (used(0), used(1)) == before
    del y


def test_the_error_names_card_bytes_and_room():
    torch.vcard.set_capacity(1, 64 * MIB)
    x = torch.empty(52 * MIB, dtype=torch.uint8, device="vcard:1")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(20 * MIB, dtype=torch.uint8, device="vcard:1")
    said = str(caught.value)
    assert re.search(r"Tried to allocate 20\.00 MiB", said)
    assert re.search(r"vcard:1 has a capacity of 64\.00 MiB of which 12\.00 MiB is free", said)
    del x


def test_a_card_may_be_filled_to_the_last_byte():
    torch.vcard.set_capacity(0, MIB)
    x = torch.empty(MIB, dtype=torch.uint8, device="vcard:0")
    assert torch.vcard.mem_get_info(0) == (0, MIB)
    assert torch.empty(0, device="vcard:0").numel() == 0
    del x


def test_a_lowered_capacity_takes_nothing_away():
    x = torch.ones(MIB, device="vcard:0")
    torch.vcard.set_capacity(0, MIB)
    assert torch.vcard.mem_get_info(0) == (0, MIB)
    with pytest.raises(torch.OutOfMemoryError):
        x + 1
    assert x.neg_()[0].item() == -1.0


def test_out_of_memory_anywhere_in_a_step_leaves_nothing_behind():
    """Capacities from what the model holds to what a step needs: the step fails at another place each time."""
    model = nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Dropout(0.1), nn.Linear(256, 256), nn.Linear(256, 8)
    ).to("vcard:1")
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(128, 64, device="vcard:1")

    def step() -> None:
        nn.functional.cross_entropy(model(x), x[:, 0].long().clamp(0, 7)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = used(1)
    torch.vcard.reset_peak_memory_stats(1)
    step()
    peak = torch.vcard.max_memory_allocated(1)
    failed = set()
    for capacity in range(held + 512, peak, max(512, (peak - held) // 16)):
        torch.vcard.set_capacity(1, capacity)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            step()
        failed.add(str(caught.value).split(". vcard")[0])
        optimizer.zero_grad()
        del caught
        gc.collect()
        assert used(1) == held
    assert len(failed) >= 3
    torch.vcard.set_capacity(1, peak)
    step()
    assert used(1) == held
    assert torch.vcard.max_memory_allocated(1) == peak


def test_resize_and_storages():
    x = torch.arange(8.0, device="vcard:1")
    before = used(1)
    x.resize_(1024)
    assert used(1) == before - 512 + 4096
    assert x[:8].tolist() == list(range(8))
    storage = x.untyped_storage()
    assert storage.device == torch.device("vcard:1")
    storage.resize_(0)
    assert used(1) == before - 512
    storage.resize_(4096)
    assert used(1) == before - 512 + 4096
    assert x.fill_(2.0).sum().item() == 2048.0


def test_out_argument_grows_on_its_card():
    x = torch.arange(6.0, device="vcard:1")
    out = torch.empty(0, device="vcard:1")
    assert torch.add(x, x, out=out) is out
    assert out.tolist() == [0, 2, 4, 6, 8, 10]
    assert used(1) == 1024


def test_set():
    x = torch.arange(12.0, device="vcard:0")
    y = torch.empty(0, device="vcard:0").set_(x.untyped_storage(), 2, (2, 3), (6, 1))
    assert y.tolist() == [[2, 3, 4], [8, 9, 10]]
    y.add_(100)
    assert x[2].item() == 102
    assert torch.empty(0, device="vcard:0").set_(x).data_ptr() == x.data_ptr()
    before = used(0)
    assert y.set_().numel() == 0
    assert used(0) == before
    with pytest.raises(RuntimeError, match="vcard:1"):
        torch.empty(0, device="vcard:1").set_(x.untyped_storage())


def test_overlapping_arguments_are_noticed():
    x = torch.arange(10.0, device="vcard:0")
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to tensor"):
        torch.add(x[:-1], 1, out=x[1:])
