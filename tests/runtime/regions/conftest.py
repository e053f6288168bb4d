"""Virtual cards for regions, as many as a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from runtime.regions.specimens import SplitModel, split_model
from torch import nn

import poolrt


@pytest.fixture
def cards() -> Callable[[int], list[torch.device]]:
    """cards(n): the devices of n virtual cards."""

    def make(count: int) -> list[torch.device]:
        return [torch.device(card.device) for card in poolrt.virtual(cards=count, memory="64MiB").cards]

    return make


Splitter = Callable[..., SplitModel]


@pytest.fixture
def split(cards: Callable[[int], list[torch.device]]) -> Iterator[Splitter]:
    """split(model, batch, shares): the model runs split over virtual cards; when the test ends it is whole again."""
    made: list[SplitModel] = []

    def make(model: nn.Module, batch: dict[str, Any], shares: Sequence[float] = (1.0, 1.0)) -> SplitModel:
        made.append(split_model(model, batch, cards(len(shares)), shares))
        return made[-1]

    yield make
    for each in made:
        each.installed.uninstall()
    made.clear()  # the fixture itself lives on for a while
