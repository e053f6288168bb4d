"""Split layers whose pieces do not fit their cards: what the plan spills of them lies in the pool.

weight, 1.5 cards   [ piece 0 ....... | piece 1 ....... ]
card 0   gradient of piece 0 | activations | room for some of piece 0
card 1   gradient of piece 1 | activations | room for some of piece 1
host                                         the rest of both, and the optimizer's state
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.errors import InfeasibleError
from poolrt.runtime.pooled import Pooled, pooled_of
from poolrt.runtime.sharded.parameter import ShardedParameter

MIB = 1 << 20
CARD = 2 * MIB
STEPS = 3
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert [torch.vcard.memory_allocated(card) for card in range(torch.vcard.device_count())] == [0, 0]


def linear() -> nn.Module:
    """Its weight alone is 1.5 times a card's memory."""
    torch.manual_seed(0)
    layer = nn.Linear(512, 768, dtype=torch.float64)
    assert 2 * layer.weight.nbytes == 3 * CARD
    return layer


def sharded(model: nn.Module, batch: Tensor, optimizer: str = "sgd", memory: int = CARD, **options: Any) -> Pooled:
    topology = poolrt.virtual(cards=2, memory=memory)
    poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=2, optimizer=optimizer, **options)
    pooled = pooled_of(model)
    assert pooled is not None
    return pooled


def train(model: nn.Module, batch: Tensor, optimizer: str) -> torch.optim.Optimizer:
    stepping = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(STEPS):
        stepping.zero_grad()
        model(batch).square().sum().backward()
        stepping.step()
    return stepping


def assert_trained_alike(plain: nn.Module, model: nn.Module) -> None:
    for expected, actual in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=1e-12, atol=1e-12)


def assert_as_planned(model: nn.Module) -> None:
    report = poolrt.report(model)
    for card, measured in zip(report.plan.cards, report.measured_peak_bytes, strict=True):
        assert measured is not None
        assert measured <= card.capacity_bytes
        assert card.predicted_peak_bytes == pytest.approx(measured, rel=0.05), f"card {card.index}"


def places(pooled: Pooled, tensor: Tensor) -> set[int | None]:
    """Where the pieces lie: cards, or None for the host."""
    assert pooled.spill is not None
    return {extent.card for piece in tensor.pieces for extent in pooled.spill.pool.extents(piece)}  # type: ignore[attr-defined]


@each_optimizer
def test_a_linear_layer_larger_than_a_card_trains_on_two(optimizer: str):
    plain, batch = linear(), torch.randn(2, 512, dtype=torch.float64)
    model = copy.deepcopy(plain)
    pooled = sharded(model, batch, optimizer)
    assert isinstance(model.weight, ShardedParameter)
    assert None in places(pooled, model.weight), "its pieces do not fit beside their gradients"
    train(plain, batch, optimizer)
    stepped = train(model, batch, optimizer)
    assert_trained_alike(plain, model)
    assert_as_planned(model)
    if optimizer == "adamw":
        assert None in places(pooled, stepped.state[model.weight]["exp_avg"])
    text = poolrt.report(model).plan.explain()
    assert "weights of card 1 (the model)" in text
    assert "on the host" in text


def test_a_given_amount_of_the_host_is_enough_or_it_is_said_how_much_would_be():
    batch = torch.randn(2, 512, dtype=torch.float64)
    pooled = sharded(linear(), batch, spill="12MiB")
    assert pooled.plan is not None
    assert 0 < pooled.plan.host_spill_bytes <= 12 * MIB
    with pytest.raises(InfeasibleError, match="host"):
        sharded(linear(), batch, spill="1MiB")


def test_never_means_never():
    model = linear()
    with pytest.raises(InfeasibleError, match=r"card 0|card 1"):
        sharded(model, torch.randn(2, 512, dtype=torch.float64), spill="never")
    assert model.weight.device.type == "cpu"
    assert type(model.weight) is nn.Parameter


def test_every_layer_of_a_larger_model_gives_its_pieces_to_the_host():
    """Weights fill three quarters of each card and so do their gradients, which stay on it."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 1024)
    ).double()
    batch = torch.randn(2, 512, dtype=torch.float64)
    model = copy.deepcopy(plain)
    pooled = sharded(model, batch, "adamw", 4 * CARD, spill="64MiB")
    train(plain, batch, "adamw")
    train(model, batch, "adamw")
    assert_trained_alike(plain, model)
    assert_as_planned(model)
    assert all(None in places(pooled, layer.weight) for layer in model if isinstance(layer, nn.Linear))
