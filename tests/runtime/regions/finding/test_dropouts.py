"""Dropout of a card's own part is the card's; of the sum it is drawn once; of what all share it is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runtime.regions.conftest import Splitter
from runtime.regions.specimens import SPECIMENS, gpt2
from torch import Tensor, nn

from poolrt.runtime.regions.finding.dealing import NotSplittableError
from poolrt.runtime.regions.finding.search_region import fork_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """Feed-forward, with dropout in one of several places."""

    def __init__(self, where: str, rate: float = 0.5) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(4, 8), nn.Linear(8, 4), nn.Dropout(rate)
        self.where, self.rate = where, rate

    def forward(self, x: Tensor) -> Tensor:
        x = self._at("before", x)
        x = self._at("inside", self.up(x).relu())
        x = self._at("after", self.down(x))
        if self.where == "by hand":
            return F.dropout(x, self.rate, self.training)
        return x + 1 if self.where == "after, then more" else x

    def _at(self, where: str, x: Tensor) -> Tensor:
        return self.drop(x) if self.where.startswith(where) else x


def found(where: str, rate: float = 0.5):
    return fork_of(Block(where, rate), ((torch.randn(5, 4),), {}), [1, 1])[0]


def test_of_its_own_part_each_card_drops_itself():
    assert found("inside").dropout_after is None


def test_of_the_sum_it_is_drawn_once_on_the_lead_card():
    assert found("after").dropout_after == "drop"


@pytest.mark.parametrize("where", ["before", "by hand"])
def test_of_what_all_share_it_is_refused(where: str):
    with pytest.raises(NotSplittableError, match="each would drop others"):
        found(where)


@pytest.mark.parametrize("where", ["before", "by hand"])
def test_a_rate_of_zero_is_no_dropout(where: str):
    assert found(where, 0.0).dropout_after is None


def test_an_entry_of_the_sum_is_dropped_whole(split: Splitter):
    """A half-dropped entry would be one card's share: neither 0 nor the whole one scaled."""
    specimen = SPECIMENS["gpt2"]
    reference, batch = specimen.build()
    torch.manual_seed(0)
    model = gpt2(resid_pdrop=0.5).double().train()
    model.load_state_dict(reference.state_dict())
    made = split(model, batch)
    seen = []
    model.transformer.h[0].mlp.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(**made.batch)
    ((given, output),) = seen
    whole = reference.transformer.h[0].mlp(given.cpu())
    dropped = output.cpu() == 0
    assert 0.2 < dropped.double().mean() < 0.8
    torch.testing.assert_close(output.cpu()[~dropped], 2 * whole[~dropped], rtol=1e-12, atol=1e-13)
