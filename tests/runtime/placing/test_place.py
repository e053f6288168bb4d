"""Placement moves bytes and nothing else: the objects in the user's hands stay the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolrt.runtime.placing.place import Placement, WeightsBefore, move_parameter, tensors_on_meta
from poolrt.runtime.state.layers import find_layers

Devices = tuple[torch.device, torch.device]


class Model(nn.Module):
    """Three layers; the last one's weight is the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))


def place(model: nn.Module, devices: Devices, *cards: int) -> Placement:
    layers = find_layers(model, at_least=2)
    placement = Placement(model, layers, dict(zip((layer.name for layer in layers), cards, strict=True)), devices)
    placement.apply()
    return placement


def test_parameters_are_the_same_objects_elsewhere(devices: Devices) -> None:
    model = Model()
    before = dict(model.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    place(model, devices, 0, 1, 1)
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(after[name].cpu(), values[name]) for name in values)
    assert model.norm.weight.device == devices[1]
    assert model.norm.running_mean.device == devices[1]


def test_a_tied_weight_stays_tied_and_lives_with_its_first_layer(devices: Devices) -> None:
    model = Model()
    placement = place(model, devices, 0, 1, 1)
    assert model.head.weight is model.embed.weight
    assert model.head.weight.device == devices[0]
    assert placement.card_of_module[model.head] == 1


def test_gradients_travel_with_their_parameters(devices: Devices) -> None:
    model = Model()
    model.norm.weight.grad = torch.full((8,), 3.0)
    place(model, devices, 0, 1, 1)
    assert model.norm.weight.grad.device == devices[1]
    assert model.norm.weight.grad.tolist() == [3.0] * 8


def test_what_is_in_no_layer_goes_to_the_first_card(devices: Devices) -> None:
    model = Model()
    placement = place(model, devices, 1, 0, 0)
    assert placement.first_card == 1
    assert model.scale.device == devices[1]


def test_tensors_kept_as_plain_attributes_go_along(devices: Devices) -> None:
    model = Model()
    model.norm.mask = torch.ones(3)
    place(model, devices, 0, 1, 1)
    assert model.norm.mask.device == devices[1]


def test_a_buffer_of_two_modules_stays_one(devices: Devices) -> None:
    class Turning(nn.Module):
        def __init__(self, angles: Tensor) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("angles", angles)

    angles = torch.ones(3)
    model = nn.Sequential(Turning(angles), Turning(angles), Turning(angles))
    place(model, devices, 0, 1, 1)
    assert model[1].angles is model[2].angles
    assert (model[0].angles.device, model[1].angles.device) == devices


def test_a_second_placement_moves_what_has_to_move(devices: Devices) -> None:
    model = Model()
    place(model, devices, 0, 1, 1)
    resting = model.embed.weight.data_ptr()
    place(model, devices, 0, 0, 1)
    assert model.norm.weight.device == devices[0]
    assert model.embed.weight.data_ptr() == resting


def test_bytes_per_card(devices: Devices) -> None:
    model = Model()
    placement = place(model, devices, 0, 1, 1)
    embed, norm, scale = 4 * 8 * 4, 4 * 8 * 4 + 8, 4
    assert placement.weight_nbytes() == [embed + scale, norm]
    assert placement.gradient_nbytes() == [0, 0]
    model.embed.weight.grad = torch.zeros_like(model.embed.weight)
    model.norm.bias.grad = torch.zeros_like(model.norm.bias)
    assert placement.gradient_nbytes() == [embed, 8 * 4]


def test_every_place_of_a_parameter_is_a_slot(devices: Devices) -> None:
    model = Model()
    slots = place(model, devices, 0, 1, 1).slots()
    uses = [(slot.module, slot.card) for slot in slots if slot.parameter is model.embed.weight]
    assert uses == [(model.embed, 0), (model.head, 1)]


def test_a_batch_goes_to_the_first_card(devices: Devices) -> None:
    placement = place(Model(), devices, 1, 0, 0)
    moved = placement.to_first_card({"x": [torch.ones(2)], "n": 3})
    assert moved["x"][0].device == devices[1]
    assert moved["n"] == 3


def test_weights_can_be_put_back(devices: Devices) -> None:
    model = Model()
    before, mean = WeightsBefore(model), model.norm.running_mean
    place(model, devices, 0, 1, 1)
    before.restore()
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.norm.running_mean is mean
    assert model.head.weight is model.embed.weight


def test_an_optimizer_and_a_hook_made_before_still_hold_the_parameter(devices: Devices) -> None:
    parameter = nn.Parameter(torch.ones(2))
    seen: list[Tensor] = []
    parameter.register_hook(seen.append)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    move_parameter(parameter, devices[1])
    parameter.sum().backward()
    optimizer.step()
    assert seen[0].device == devices[1]
    assert parameter.tolist() == [0.0, 0.0]


def test_parameters_without_values_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert tensors_on_meta(model) == ["0.weight", "0.bias"]
    assert tensors_on_meta(nn.Linear(2, 2)) == []
