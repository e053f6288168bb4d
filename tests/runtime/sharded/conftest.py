"""A model whose parameters are split in every way, its ordinary twin on one card, and three virtual cards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolrt
from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters
from poolrt.runtime.sharded.parameter import pieces

Devices = tuple[torch.device, ...]


class Tied(nn.Module):
    """An embedding whose weight is the head's, and two linears between. With `by_piece`, these run card by card.

    h -- up (rows on cards) -- tanh -- down (columns on cards) -- sum of the cards' parts
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.by_piece = False

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.embed.weight.device)
        hidden = self.norm(self.embed(tokens))
        hidden = self.middle(hidden) if self.by_piece else self.down(torch.tanh(self.up(hidden)))
        return self.head(hidden)

    def middle(self, hidden: Tensor) -> Tensor:
        parts = []
        weights = zip(pieces(self.up.weight), pieces(self.up.bias), pieces(self.down.weight), strict=True)
        for up, bias, down in weights:
            part = F.linear(torch.tanh(F.linear(hidden.to(up.device), up, bias)), down)
            parts.append(part.to(hidden.device))
        return sum(parts[1:], parts[0])


SPLITS = {
    "embed.weight": Split.from_counts((7, 5), dim=0),
    "up.weight": Split(dim=0, pieces=(((0, 4), (8, 12)), ((4, 8), (12, 16)))),
    "up.bias": Split(dim=0, pieces=(((0, 4), (8, 12)), ((4, 8), (12, 16)))),
    "down.weight": Split(dim=1, pieces=(((0, 4), (8, 12)), ((4, 8), (12, 16)))),
}


@pytest.fixture
def devices() -> Devices:
    topology = poolrt.virtual(cards=3, memory="64MiB")
    return tuple(torch.device(card.device) for card in topology.cards)


@pytest.fixture
def twins(devices: Devices) -> Callable[[], tuple[Tied, Tied]]:
    """Makes (sharded over two cards, ordinary on the first card), with the same values in double precision.

    A function, for a test that ends must not leave a model in a fixture's hands.
    """

    def make() -> tuple[Tied, Tied]:
        ordinary = Tied().double().to(devices[0])
        sharded = copy.deepcopy(ordinary)
        shard_parameters(sharded, SPLITS, devices[:2])
        return sharded, ordinary

    return make


@pytest.fixture
def make_model() -> Callable[[], Tied]:
    return Tied


@pytest.fixture
def splits() -> dict[str, Split]:
    return SPLITS


@pytest.fixture
def tokens() -> Tensor:
    """For the embedding; on the host, to be taken to the first card."""
    return torch.randint(0, 12, (4, 5), generator=torch.Generator().manual_seed(0))
