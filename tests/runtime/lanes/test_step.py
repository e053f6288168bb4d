"""One step through the cut node, from the user's side: backward is torch's, whatever the lanes do behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import poolrt
from poolrt.topology.topology import Topology

WIDTH = 64


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.features(x)
        return {"h": h, "loss": h.pow(2).mean(), "total": h.abs().sum()}


def pooled_and_reference(make: Callable[[], nn.Module], topology: Topology) -> tuple[nn.Module, nn.Module]:
    reference = make().double()
    model = copy.deepcopy(reference)
    sample = torch.randn(8, WIDTH, dtype=torch.float64)
    return poolrt.shard(model, topology=topology, sample=sample, micro_batches=3), reference


def assert_same_gradients(model: nn.Module, reference: nn.Module) -> None:
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad, rtol=1e-12, atol=1e-14)


LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "its own loss": lambda out: out["loss"],
    "a sum": lambda out: out["total"] * 2,
    "of an output": lambda out: out["h"][2:5].pow(3).mean(),
    "of all": lambda out: out["loss"] + out["total"] + out["h"].std(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_the_outputs(name: str, two_cards: Topology) -> None:
    model, reference = pooled_and_reference(Model, two_cards)
    x = torch.randn(8, WIDTH, dtype=torch.float64)
    for each in (model, reference):
        LOSSES[name](each(x)).backward()
    assert_same_gradients(model, reference)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad:UserWarning"
)  # in the check without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_spans_cards(reentrant: bool, two_cards: Topology) -> None:
    """Its backward runs forward code again: layers on two cards, and the glue between them."""

    class Checkpointed(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.blocks[0](x)
            h = checkpoint(self.features, x, use_reentrant=reentrant)
            return {"h": h, "loss": h.pow(2).mean()}

    model, reference = pooled_and_reference(Checkpointed, two_cards)
    x = torch.randn(8, WIDTH, dtype=torch.float64)
    for each in (model, reference):
        each(x)["loss"].backward()
    assert_same_gradients(model, reference)
