"""Turning the cards on: how many, how large, and what stands in the way."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from poolrt.errors import ConfigurationError
from poolrt.units import MIB
from poolrt.virtual_cards import backend
from poolrt.virtual_cards.build import virtual_card_library


def in_a_new_process(script: str) -> str:
    """What `script` prints; the backend is loaded once per process, so some stories need one of their own."""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_last_call_is_what_the_machine_has():
    backend.configure([8 * MIB, 16 * MIB, 32 * MIB])
    assert torch.vcard.device_count() == 3
    assert len(torch.vcard.default_generators) == 3
    kept = torch.ones(1000, device="vcard:2")
    backend.configure([64 * MIB])
    assert torch.vcard.device_count() == 1
    assert torch.vcard.mem_get_info(0) == (64 * MIB, 64 * MIB)
    with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
        torch.ones(1, device="vcard:2")
    backend.configure([8 * MIB] * 3)
    assert torch.vcard.memory_allocated(2) == 4096
    assert kept.sum().item() == 1000


def test_sixteen_cards_all_work():
    backend.configure([MIB] * backend.MAX_CARDS)
    inputs = [torch.full((4,), float(card), device=f"vcard:{card}") for card in range(backend.MAX_CARDS)]
    leaves = [x.requires_grad_() for x in inputs]
    sum((x * x).sum().cpu() for x in leaves).backward()
    assert [x.grad[0].item() for x in leaves] == [2.0 * card for card in range(backend.MAX_CARDS)]


@pytest.mark.parametrize("capacities", [[], [MIB] * 17, [MIB, 0], [-1]])
def test_what_cannot_be_is_refused_and_changes_nothing(capacities):
    with pytest.raises(ConfigurationError):
        backend.configure(capacities)
    assert torch.vcard.device_count() == 2


def test_a_current_card_that_goes_away():
    torch.vcard.set_device(1)
    backend.configure([MIB])
    assert torch.vcard.current_device() == 0


def test_a_process_that_uses_cuda_is_refused():
    script = """
import torch
torch.cuda.is_initialized = lambda: True
from poolrt.errors import ConfigurationError
from poolrt.virtual_cards import backend
try:
    backend.configure([1 << 20])
except ConfigurationError as error:
    print("CUDA" in str(error), backend.is_loaded())
"""
    assert in_a_new_process(script) == "True False"


def test_another_private_backend_is_named():
    script = """
import torch
torch.utils.rename_privateuse1_backend("other")
from poolrt.errors import ConfigurationError
from poolrt.virtual_cards import backend
try:
    backend.configure([1 << 20])
except ConfigurationError as error:
    print("other" in str(error))
"""
    assert in_a_new_process(script) == "True"


def test_cards_made_after_the_first_backward_of_a_process():
    """Autograd makes its threads at the first backward; without more of them this one would find no thread."""
    script = """
import torch
torch.ones(1, requires_grad=True).sum().backward()
from poolrt.virtual_cards import backend
backend.configure([1 << 20] * 3)
x = torch.ones(1, device="vcard:0", requires_grad=True)
(x * 2).to("vcard:2").mul(3).cpu().sum().backward()
print(x.grad.item())
"""
    assert in_a_new_process(script) == "6.0"


def test_a_driver_table_of_another_build_is_refused():
    """The compiled part and the backend are built apart; what does not fit is told by the table's size."""
    library = ctypes.CDLL(str(virtual_card_library()))
    library.vcard_last_error.restype = ctypes.c_char_p
    stale_table = (ctypes.c_uint32 * 2)(8, 0)
    assert library.vcard_load(ctypes.byref(stale_table)) != 0
    assert b"reinstall poolrt" in library.vcard_last_error()


def test_before_there_are_cards_torch_is_untouched():
    script = """
import torch
from poolrt.virtual_cards import backend, device_module
print(backend.is_loaded(), hasattr(torch, "vcard"), device_module.is_available())
"""
    assert in_a_new_process(script) == "False False False"
