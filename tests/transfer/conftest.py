"""Virtual cards for tests of copies, and routes that forget what a test did to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import poolrt
from poolrt.transfer import bounce, routes

Devices = tuple[torch.device, torch.device]


@pytest.fixture
def devices() -> Iterator[Devices]:
    """Two virtual cards, which reach each other."""
    first, second = (torch.device(card.device) for card in poolrt.virtual(cards=2, memory="256MiB").cards)
    yield first, second
    routes.current().forget("vcard")
    bounce.release()
