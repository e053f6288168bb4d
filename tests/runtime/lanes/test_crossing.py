"""Once per (tensor, version, card): what crosses is counted here, byte by byte."""

from __future__ import annotations

import gc

import torch

import poolrt
from poolrt.runtime.lanes.crossing import Crossings

Devices = tuple[torch.device, torch.device]


def test_a_mask_that_every_layer_reads_crosses_once(devices: Devices) -> None:
    crossings = Crossings()
    mask = torch.ones(16, device=devices[0])
    copies = [crossings.move(mask, devices[1]) for _ in range(5)]
    assert copies[0].device == devices[1]
    assert all(copy is copies[0] for copy in copies)
    assert (crossings.copied_tensors, crossings.copied_nbytes) == (1, 64)


def test_what_is_there_stays(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.ones(4, device=devices[0])
    assert crossings.move(tensor, devices[0]) is tensor
    assert crossings.copied_tensors == 0
    assert crossings.find(tensor, devices[1]) is None


def test_a_changed_tensor_crosses_again(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.zeros(3, device=devices[0])
    before = crossings.move(tensor, devices[1])
    tensor.add_(1)
    after = crossings.move(tensor, devices[1])
    assert before.tolist() == [0, 0, 0]
    assert after.tolist() == [1, 1, 1]
    assert crossings.copied_tensors == 2


def test_a_change_through_a_view_counts_as_well(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.zeros(3, device=devices[0])
    view = tensor[:2]
    crossings.move(tensor, devices[1])
    crossings.move(view, devices[1])
    view.fill_(7)
    assert crossings.move(tensor, devices[1]).tolist() == [7, 7, 0]
    assert crossings.move(view, devices[1]).tolist() == [7, 7]


def test_two_views_of_one_memory_are_two_tensors(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.arange(4.0, device=devices[0])
    front, back = crossings.move(tensor[:2], devices[1]), crossings.move(tensor[2:], devices[1])
    assert (front.tolist(), back.tolist()) == ([0, 1], [2, 3])


def test_a_dead_tensor_is_forgotten_with_its_copies(devices: Devices) -> None:
    crossings = Crossings()
    before = torch.vcard.memory_allocated(devices[1])
    tensor = torch.ones(1024, device=devices[0])
    crossings.move(tensor, devices[1])
    assert torch.vcard.memory_allocated(devices[1]) > before
    del tensor
    gc.collect()
    assert torch.vcard.memory_allocated(devices[1]) == before


def test_a_new_tensor_at_a_dead_ones_place_gets_its_own_copy(devices: Devices) -> None:
    crossings = Crossings()
    for value in range(50):
        tensor = torch.full((2,), float(value), device=devices[0])
        assert crossings.move(tensor, devices[1]).tolist() == [value, value]
        del tensor


def test_clear_gives_back_every_copy(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.ones(1024, device=devices[0])
    before = torch.vcard.memory_allocated(devices[1])
    crossings.move(tensor, devices[1])
    crossings.clear()
    assert torch.vcard.memory_allocated(devices[1]) == before
    assert crossings.find(tensor, devices[1]) is None


def test_gradients_come_back_through_the_one_copy(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.ones(2, device=devices[0], requires_grad=True)
    total = crossings.move(tensor, devices[1]) * 2 + crossings.move(tensor, devices[1]) * 3
    total.sum().backward()
    assert tensor.grad.tolist() == [5, 5]
    assert tensor.grad.device == devices[0]


def test_a_third_card_is_served_from_the_second() -> None:
    """card 0 -> 1 -> 2, so that gradients are summed in the order of one card."""
    crossings = Crossings()
    first, second, third = (torch.device(card.device) for card in poolrt.virtual(cards=3, memory="16MiB").cards)
    tensor = torch.ones(2, device=first, requires_grad=True)
    on_second = crossings.move(tensor, second)
    assert crossings.latest(tensor) is on_second
    on_third = crossings.move(tensor, third)
    assert on_third.grad_fn.next_functions[0][0] is on_second.grad_fn
    (on_second + on_third.to(second)).sum().backward()
    assert tensor.grad.tolist() == [2, 2]


def test_a_copy_made_without_gradients_does_not_serve_where_they_are_wanted(devices: Devices) -> None:
    """A momentum encoder under no_grad, then the real one: the second must learn."""
    crossings = Crossings()
    tensor = torch.ones(2, device=devices[0], requires_grad=True)
    with torch.no_grad():
        assert not crossings.move(tensor, devices[1]).requires_grad
    crossings.move(tensor, devices[1]).sum().backward()
    assert tensor.grad.tolist() == [1, 1]
    with torch.no_grad():
        crossings.move(tensor, devices[1])
    assert crossings.copied_tensors == 2


def test_a_copy_made_in_inference_mode_does_not_serve_outside(devices: Devices) -> None:
    crossings = Crossings()
    mask = torch.full((2,), 3.0, device=devices[0])
    weight = torch.ones(2, device=devices[1], requires_grad=True)
    with torch.inference_mode():
        assert crossings.move(mask, devices[1]).is_inference()
    (crossings.move(mask, devices[1]) * weight).sum().backward()
    assert weight.grad.tolist() == [3, 3]


def test_tensors_of_inference_mode_have_no_version_and_still_cross_once(devices: Devices) -> None:
    crossings = Crossings()
    with torch.inference_mode():
        tensor = torch.ones(2, device=devices[0])
        assert crossings.move(tensor, devices[1]) is crossings.move(tensor, devices[1])


def test_a_nested_value_moves_as_a_whole(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.ones(2, device=devices[0])
    moved = crossings.move_all({"a": [tensor, 3], "b": tensor, "none": None}, devices[1])
    assert moved["a"][0] is moved["b"]
    assert moved["a"][1] == 3
    assert crossings.copied_tensors == 1


def test_a_copy_made_elsewhere_is_the_one_copy(devices: Devices) -> None:
    crossings = Crossings()
    tensor = torch.ones(2, device=devices[0], requires_grad=True)
    hopped = tensor.to(devices[1])
    assert crossings.move(tensor, devices[1], hopped) is hopped
    assert crossings.move(tensor, devices[1]) is hopped
    assert (crossings.copied_tensors, crossings.copied_nbytes) == (1, 8)
