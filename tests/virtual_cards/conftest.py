"""Two virtual cards of 1 GiB for every test here, and one thread, so that a card's bits are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from poolrt.units import GIB
from poolrt.virtual_cards import backend


@pytest.fixture(autouse=True)
def two_cards(one_thread: None) -> Iterator[None]:
    if torch.cuda.is_initialized():
        pytest.skip("this process uses CUDA, which virtual cards would hide; run with CUDA_VISIBLE_DEVICES=")
    backend.configure([GIB, GIB])
    torch.vcard.set_device(0)
    yield
    backend.configure([GIB, GIB])
