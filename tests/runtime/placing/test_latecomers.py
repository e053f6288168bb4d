"""Modules that a script adds after `shard`: the error names them; moved to their layer's card they take part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.errors import ModelError

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "inside a whole layer": ("2.down", {"micro_batches": 2}),
    "around a split one": ("2", {"tensor_parallel": 2}),
}


class Adapted(nn.Module):
    """A linear layer and a narrow way around it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base = base
        self.around = nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.around(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(4))).double()


def adapt(model: nn.Module, name: str) -> Adapted:
    adapted = Adapted(model.get_submodule(name))
    model.set_submodule(name, adapted)
    return adapted


@pytest.mark.parametrize("form", FORMS)
def test_what_came_late_is_named_and_may_be_moved(form: str):
    name, options = FORMS[form]
    x = torch.randn(4, 16, dtype=torch.float64)
    model = poolrt.shard(blocks(), sample=x, topology=poolrt.virtual(cards=2, memory="64MiB"), **options)
    adapted = adapt(model, name)
    for _ in range(2):
        with pytest.raises(
            ModelError, match=rf"4 parameters .* {name}\.around\.0\.weight on cpu.* after poolrt\.shard"
        ):
            model(x)
    adapted.around.to(next(adapted.base.parameters()).device)
    expected = blocks()
    adapt(expected, name)
    out, wanted = model(x), expected(x)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    out.sum().backward()
    wanted.sum().backward()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-12, atol=1e-12)


def raising(message: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        raise RuntimeError(message)

    return hook


@pytest.mark.parametrize("message", ["something else", "tensors on the same device"])
def test_other_errors_are_the_models_own(message: str):
    x = torch.randn(4, 16, dtype=torch.float64)
    model = poolrt.shard(blocks(), sample=x, topology=poolrt.virtual(cards=2, memory="64MiB"))
    model[1].up.register_forward_hook(raising(message))
    with pytest.raises(RuntimeError, match=message) as caught:
        model(x)
    assert type(caught.value) is RuntimeError
