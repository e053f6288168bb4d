"""Two virtual cards for tests of the runtime's parts."""

from __future__ import annotations

import pytest
import torch

import poolrt
from poolrt.topology.topology import Topology


@pytest.fixture
def two_cards() -> Topology:
    return poolrt.virtual(cards=2, memory="64MiB")


@pytest.fixture
def devices(two_cards: Topology) -> tuple[torch.device, torch.device]:
    first, second = (torch.device(card.device) for card in two_cards.cards)
    return first, second
