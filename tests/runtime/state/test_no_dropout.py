"""Without dropout a forward draws nothing, and everything else is as in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.state.model_state import GeneratorStates
from poolrt.runtime.state.no_dropout import no_dropout


class Attention(nn.Module):
    def __init__(self, by_position: bool) -> None:
        super().__init__()
        self.by_position = by_position

    def forward(self, x: Tensor) -> Tensor:
        if self.by_position:
            return F.scaled_dot_product_attention(x, x, x, None, 0.5)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)[0]


DROPPING: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: nn.Dropout(0.5),
    "Dropout in place": lambda: nn.Dropout(0.5, inplace=True),
    "Dropout1d": lambda: nn.Dropout1d(0.5),
    "AlphaDropout": lambda: nn.AlphaDropout(0.5),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.5),
    "torch.dropout": lambda: Function(lambda x: torch.dropout(x, 0.5, True)),
    "named input": lambda: Function(lambda x: F.dropout(input=x, p=0.5)),
    "attention by position": lambda: Attention(True),
    "attention by name": lambda: Attention(False),
    "MultiheadAttention": SelfAttention,
    "GRU": Recurrent,
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True),
}


@pytest.mark.parametrize("name", DROPPING)
def test_nothing_is_dropped_nor_drawn(name: str) -> None:
    model = DROPPING[name]().train()
    x = torch.randn(2, 6, 4)
    assert not torch.equal(model(x.clone()), model(x.clone())), "this model drops nothing to begin with"
    before = GeneratorStates(())
    with no_dropout(model):
        first, second = model(x.clone()), model(x.clone())
    assert torch.equal(first, second)
    assert GeneratorStates(()).first_difference(before) is None
    assert not torch.equal(model(x.clone()), model(x.clone()))
    assert model.training


def test_batch_norm_still_takes_the_batchs_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.randn(8, 4) * 3 + 1
    with no_dropout(model), torch.no_grad():
        output = model(x)
    torch.testing.assert_close(output.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert int(model[0].num_batches_tracked) == 1


def test_rates_are_put_back_after_an_error() -> None:
    model = nn.LSTM(2, 2, num_layers=2, dropout=0.25)
    with pytest.raises(KeyError), no_dropout(model):
        raise KeyError
    assert model.dropout == 0.25
