"""The probe sees every call once, measures what it keeps, and keeps nothing itself."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.runtime.lanes.lane import current
from poolrt.runtime.measuring.measure import to_layer
from poolrt.runtime.measuring.probe import Probed, probe
from poolrt.runtime.state.layers import Layer, find_layers

ROWS, WIDTH = 8, 128
ACTIVATION = ROWS * WIDTH * 4
"""bytes of one activation, a multiple of the allocators' granule"""


def run(model: nn.Module, *args: Any, layers: list[Layer] | None = None) -> Probed:
    layers = find_layers(model, at_least=2) if layers is None else layers
    return probe(model, model.forward, layers, (args, {}), to_layer)


def chain(count: int = 3) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(count)))


def batch() -> Tensor:
    return torch.randn(ROWS, WIDTH)


def test_calls_are_listed_in_their_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x)))

    assert [call.layer for call in run(Backwards(), batch()).calls] == ["a", "b", "a"]


def test_bytes_of_a_plain_chain() -> None:
    probed = run(chain(), batch())
    assert [call.output_nbytes for call in probed.calls] == [ACTIVATION] * 3
    # A linear layer keeps its input. What a layer reads from another is counted there, as output; the batch is not.
    assert [call.saved_nbytes for call in probed.calls] == [ACTIVATION, 0, 0]
    assert all(call.forward_s > 0 and call.backward_s > 0 for call in probed.calls)
    assert probed.output_nbytes == ACTIVATION
    assert probed.unreached == []


def test_weights_are_no_activations() -> None:
    frozen = chain()
    frozen.requires_grad_(False)
    frozen[2].requires_grad_(True)
    saved = [call.saved_nbytes for call in run(frozen, batch()).calls]
    assert saved == [0, 0, ACTIVATION]


def test_what_a_layer_leaves_in_a_cache_is_charged_to_its_call() -> None:
    class Cache:
        def __init__(self) -> None:
            self.kept: list[Tensor] = []

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, caches: bool = True) -> tuple[Tensor, Cache]:
            cache = Cache()
            h = self.a(x)
            if caches:
                cache.kept = [h + 1, h[:4]]  # the second is a view of what is kept in any case
            return self.b(h), cache

    plain, caching = Caching(), Caching()
    without = probe(plain, plain.forward, find_layers(plain, at_least=2), ((batch(), False), {}), to_layer)
    probed = run(caching, batch())
    assert [call.saved_nbytes for call in probed.calls] == [
        without.calls[0].saved_nbytes + ACTIVATION,
        without.calls[1].saved_nbytes,
    ]
    assert probed.output_nbytes == without.output_nbytes == ACTIVATION


def test_glue_is_charged_to_the_call_before_it() -> None:
    class Glued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).exp().exp())

    calls = run(Glued(), batch()).calls
    plain = run(chain(2), batch()).calls
    assert calls[0].saved_nbytes == plain[0].saved_nbytes + 2 * ACTIVATION
    assert calls[1].saved_nbytes in (0, plain[1].saved_nbytes)


def test_workspace_is_what_a_call_needs_for_a_moment() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            with torch.no_grad():
                torch.cat([y] * 10).sum()
            return y

    model = nn.Sequential(Wasteful(), nn.Linear(WIDTH, WIDTH))
    wasteful, plain = run(model, batch(), layers=[Layer("0", model[0]), Layer("1", model[1])]).calls
    assert wasteful.forward_workspace_nbytes >= 10 * ACTIVATION > plain.forward_workspace_nbytes


def test_layers_of_one_structure_get_the_same_seconds() -> None:
    calls = run(nn.Sequential(*chain(4), nn.Linear(WIDTH, 1)), batch()).calls
    assert len({call.backward_s for call in calls[:4]}) == 1


def test_a_layer_whose_children_are_called_in_its_stead_is_reported() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.bypassed, self.never = chain(1), chain(2), chain(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bypassed[1](self.bypassed[0](self.used(x)))

    model = Around()
    layers = [Layer(name, child) for name, child in model.named_children()]
    probed = run(model, batch(), layers=layers)
    assert [layer.name for layer in probed.unreached] == ["bypassed"]
    assert [call.layer for call in probed.calls] == ["used"]


def assert_untouched(model: nn.Module) -> None:
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert current.walker is None


def test_nothing_is_left_on_the_model() -> None:
    model = chain()
    run(model, batch())
    assert_untouched(model)


def test_nothing_is_left_after_a_forward_that_raises() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            raise KeyError("mine")

    model = Failing()
    with pytest.raises(KeyError, match="mine"):
        run(model, batch())
    assert_untouched(model)


def test_only_one_layers_activations_exist_at_a_time(devices: tuple[torch.device, torch.device]) -> None:
    """A model whose activations do not fit can still be probed."""
    model = chain(12).to(devices[0])
    x = batch().to(devices[0])
    gc.collect()
    torch.vcard.reset_peak_memory_stats(0)
    before = torch.vcard.memory_allocated(0)
    run(model, x)
    weight = model[0].weight.nbytes
    assert torch.vcard.max_memory_allocated(0) - before < 2 * weight + 8 * ACTIVATION


def test_layers_may_lie_on_several_cards(devices: tuple[torch.device, torch.device]) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH).to(devices[0]), nn.Linear(WIDTH, WIDTH).to(devices[1])

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + self.b(y)

    probed = run(Residual(), batch().to(devices[0]))
    assert [call.layer for call in probed.calls] == ["a", "b"]


@pytest.mark.parametrize(
    "change", [lambda y: y.add_(1), lambda y: y.relu_(), lambda y: y.mul_(2)], ids=["add_", "relu_", "mul_"]
)
def test_outputs_of_layers_may_be_changed_in_place(change: Callable[[Tensor], Tensor]) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(change(self.a(x)))

    assert len(run(InPlace(), batch()).calls) == 2
