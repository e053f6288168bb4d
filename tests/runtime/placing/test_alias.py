"""Stand-ins for parameters: own graphs per micro-batch, one summed gradient per parameter, and everything put back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poolrt.runtime.placing.alias import Aliases
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.state.layers import find_layers

Devices = tuple[torch.device, torch.device]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3)
        self.third = nn.Linear(3, 3, bias=False)
        self.third.weight = self.first.weight


def placed(model: nn.Module, devices: Devices, *cards: int) -> Placement:
    layers = find_layers(model, at_least=2)
    placement = Placement(model, layers, dict(zip((layer.name for layer in layers), cards, strict=True)), devices)
    placement.apply()
    return placement


def gradients(aliases: Aliases) -> dict[int, torch.Tensor | None]:
    taken = aliases.take_gradients()
    return {id(parameter): gradient for parameter, gradient in zip(aliases.parameters, taken, strict=True)}


def test_inside_the_modules_hold_stand_ins_on_their_own_card(devices: Devices) -> None:
    model = Tied()
    aliases = Aliases(placed(model, devices, 0, 1, 1), learning=True)
    weight = model.first.weight
    with aliases.in_place():
        assert model.first.weight is not weight
        assert model.first.weight.data_ptr() == weight.data_ptr()
        assert model.third.weight.device == devices[1]
        assert isinstance(model.third.weight, nn.Parameter)
        assert torch.equal(model.third.weight.cpu(), weight.cpu())
    assert model.first.weight is weight
    assert model.third.weight is weight


def test_nothing_is_swapped_where_nothing_learns_or_crosses(devices: Devices) -> None:
    model = Tied()
    with Aliases(placed(model, devices, 0, 1, 1), learning=False).in_place():
        assert model.second.weight.requires_grad
        assert model.third.weight.device == devices[1]
        assert not model.third.weight.requires_grad
    model.second.requires_grad_(False)
    placement = placed(model, devices, 0, 1, 1)
    own = model.second.weight
    aliases = Aliases(placement, learning=True)
    with aliases.in_place():
        assert model.second.weight is own
    assert [id(p) for p in aliases.parameters] == [id(model.first.weight)]


def test_an_exception_inside_puts_the_parameters_back(devices: Devices) -> None:
    model = Tied()
    before = dict(model.named_parameters(remove_duplicate=False))
    with pytest.raises(KeyError), Aliases(placed(model, devices, 0, 1, 1), learning=True).in_place():
        raise KeyError
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in before)


def test_gradients_of_a_tied_weight_are_summed_at_home(devices: Devices) -> None:
    model = Tied()
    aliases = Aliases(placed(model, devices, 0, 1, 1), learning=True)
    with aliases.in_place():
        (model.first.weight * 2).sum().backward()
        (model.third.weight * 5).sum().backward()
        model.second.bias.sum().backward()
    assert model.first.weight.grad is None
    taken = gradients(aliases)
    tied = taken[id(model.first.weight)]
    assert tied.device == devices[0]
    assert torch.equal(tied.cpu(), torch.full((3, 3), 7.0))
    assert taken[id(model.second.bias)].tolist() == [1.0] * 3
    assert taken[id(model.second.weight)] is None


def test_micro_batches_add_up_in_one_stand_in(devices: Devices) -> None:
    model = Tied()
    aliases = Aliases(placed(model, devices, 0, 0, 0), learning=True)
    with aliases.in_place():
        for factor in (1.0, 2.0, 4.0):
            (model.first.weight * factor).sum().backward()
    assert gradients(aliases)[id(model.first.weight)][0, 0] == 7.0


def test_gradients_are_taken_once(devices: Devices) -> None:
    model = Tied()
    aliases = Aliases(placed(model, devices, 0, 1, 1), learning=True)
    with aliases.in_place():
        model.first.weight.sum().backward()
    assert gradients(aliases)[id(model.first.weight)] is not None
    assert gradients(aliases)[id(model.first.weight)] is None


def test_gradients_of_a_backward_that_failed_are_dropped(devices: Devices) -> None:
    model = Tied()
    aliases = Aliases(placed(model, devices, 0, 1, 1), learning=True)
    with aliases.in_place():
        model.third.weight.sum().backward()
    aliases.drop_gradients()
    assert all(gradient is None for gradient in gradients(aliases).values())


def test_a_weight_with_many_uses_is_summed_as_one_card_sums_it(devices: Devices) -> None:
    """((g3 + g2) + g1) + g0, last use first: numbers of very different size show the order in their last bits."""

    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(4))
            for part in self.parts[1:]:
                part.weight = self.parts[0].weight

    model = Four()
    aliases = Aliases(placed(model, devices, 0, 1, 0, 1), learning=True)
    sizes = [1.0, 1e8, -1e8, 0.5]
    with aliases.in_place():
        for part, size in zip(reversed(model.parts), reversed(sizes), strict=True):
            (part.weight * size).sum().backward()
    expected = torch.zeros(())
    for size in reversed(sizes):
        expected = expected + size
    assert gradients(aliases)[id(model.parts[0].weight)][0, 0].item() == expected.item()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_read_the_stand_ins(kind: type[nn.RNNBase], devices: Devices) -> None:
    """They keep a second list of their weights, and their forward reads only that."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4)
            self.head = nn.Linear(4, 2)

    model = Recurrent()
    aliases = Aliases(placed(model, devices, 1, 0), learning=True)
    x = torch.randn(5, 2, 3, device=devices[1])
    with aliases.in_place():
        assert all(
            flat is own for flat, own in zip(model.rnn._flat_weights, model.rnn._parameters.values(), strict=True)
        )
        model.rnn(x)[0].sum().backward()
    taken = gradients(aliases)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(flat is own for flat, own in zip(model.rnn._flat_weights, model.rnn._parameters.values(), strict=True))
    model.rnn(x)[0].sum().backward()
    for parameter in model.rnn.parameters():
        torch.testing.assert_close(taken[id(parameter)], parameter.grad)


def test_a_stand_in_has_the_kind_and_values_of_its_parameter(devices: Devices) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with Aliases(placed(model, devices, 0, 1), learning=True).in_place():
        assert model[1].weight.dtype == torch.float64
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert F.linear(torch.ones(1, 2, dtype=torch.float64, device=devices[1]), model[1].weight).requires_grad
