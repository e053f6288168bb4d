"""Three virtual cards whose links take their time, each direction of each link another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transfer.collectives.slow_links import CARDS, slow_down

import poolrt
from poolrt.transfer import bounce, routes
from poolrt.virtual_cards.links import clear_faults, clear_links


@pytest.fixture
def cards() -> Iterator[list[torch.device]]:
    """A wait that is missing shows on one of their links."""
    devices = [torch.device(card.device) for card in poolrt.virtual(cards=CARDS, memory="64MiB").cards]
    torch.vcard.reset_hazards()
    slow_down()
    yield devices
    for device in devices:
        torch.vcard.synchronize(device)
    clear_links()
    clear_faults()
    routes.current().forget("vcard")
    bounce.release()
    assert torch.vcard.hazards() == []
