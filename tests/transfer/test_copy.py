"""poolrt.copy: the bits of Tensor.copy_ over every route, its gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.transfer.copy import copy, copy_over
from poolrt.transfer.move import move, start
from poolrt.transfer.routes import HOST, current

Devices = tuple[torch.device, torch.device]
ROUTES = ["P2P", "HOST"]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype.is_complex or dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 100, shape).to(dtype)


def forms(tensor: Tensor) -> dict[str, Tensor]:
    """Tensors of the same shape (6, 8) that lie in memory in different ways."""
    rows, columns = tensor.shape
    return {
        "contiguous": tensor.clone(),
        "transposed": tensor.t().contiguous().t(),
        "every other": torch.empty(rows, 2 * columns, dtype=tensor.dtype, device=tensor.device)[:, ::2].copy_(tensor),
        "offset": torch.empty(rows + 1, columns, dtype=tensor.dtype, device=tensor.device)[1:].copy_(tensor),
    }


FORMS = ["contiguous", "transposed", "every other", "offset"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form_of_target", FORMS)
@pytest.mark.parametrize("form_of_source", FORMS)
def test_every_form_arrives(devices: Devices, route: str, form_of_source: str, form_of_target: str) -> None:
    tensor = values((6, 8), torch.float32)
    source = forms(tensor.to(devices[0]))[form_of_source]
    target = forms(torch.zeros(6, 8, device=devices[1]))[form_of_target]
    copy_over(route, source, target)
    assert torch.equal(target.cpu(), tensor)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("of", "to"), [(a, b) for a in DTYPES for b in DTYPES if b.is_complex or not a.is_complex])
def test_casts_have_the_bits_of_torch(devices: Devices, route: str, of: torch.dtype, to: torch.dtype) -> None:
    tensor = values((5, 3), of)
    target = torch.empty(5, 3, dtype=to, device=devices[1])
    copy_over(route, tensor.to(devices[0]), target)
    assert torch.equal(target.cpu(), torch.empty(5, 3, dtype=to).copy_(tensor))


@pytest.mark.parametrize("route", ROUTES)
def test_lazy_conjugates_and_negatives_arrive_as_values(devices: Devices, route: str) -> None:
    tensor = values((4, 4), torch.complex64).to(devices[0])
    target = torch.empty_like(tensor, device=devices[1])
    copy_over(route, tensor.conj(), target)
    assert torch.equal(target.cpu(), tensor.cpu().conj().resolve_conj())
    lazy = torch.zeros_like(tensor, device=devices[1]).conj()
    copy_over(route, tensor, lazy)
    assert torch.equal(lazy.cpu().resolve_conj(), tensor.cpu())
    imaginary = torch.empty(4, 4, device=devices[1])
    copy_over(route, tensor.conj().imag, imaginary)
    assert torch.equal(imaginary.cpu(), -tensor.cpu().imag)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("numel", [0, 1, 131071, 131073, (3 << 20) + 5])
def test_every_size_arrives(devices: Devices, route: str, numel: int) -> None:
    tensor = torch.randint(0, 256, (numel,), dtype=torch.uint8)
    target = torch.zeros(numel, dtype=torch.uint8, device=devices[1])
    copy_over(route, tensor.to(devices[0]), target)
    assert torch.equal(target.cpu(), tensor)


def test_the_host_route_may_be_taken_within_one_card(devices: Devices) -> None:
    tensor = values((1000,), torch.float32).to(devices[0])
    target = torch.zeros_like(tensor)
    copy_over("HOST", tensor, target)
    assert torch.equal(target, tensor)


def test_to_and_from_the_host(devices: Devices) -> None:
    tensor = values((7,), torch.float32)
    on_card = copy(tensor, torch.empty(7, device=devices[0]))
    assert torch.equal(copy(on_card, torch.empty(7)), tensor)
    assert torch.equal(copy(tensor, torch.empty(7)), tensor)


@pytest.mark.parametrize("route", ROUTES)
def test_gradients_are_those_of_copy(devices: Devices, route: str) -> None:
    def gradients(copy_into, device: torch.device) -> list[Tensor]:
        torch.manual_seed(3)
        source, before, factor = (torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
        sent = (source.to(devices[0]) * 2).float()
        target = before.to(device) * 1
        result = copy_into(sent, target)
        assert result is target
        (result * factor.to(device)).sum().backward()
        return [source.grad, before.grad, factor.grad]

    if route == "HOST":
        current().lose(devices[0], devices[1], "for the test")
        current().lose(devices[1], devices[0], "for the test")
    expected = gradients(lambda source, target: target.copy_(source), devices[1])
    found = gradients(copy, devices[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_part_of_a_tensor_is_written_with_its_gradient(devices: Devices) -> None:
    source = torch.ones(2, device=devices[0], requires_grad=True)
    whole = torch.zeros(5, device=devices[1])
    copy(source * 3, whole[1:3])
    assert whole.tolist() == [0, 3, 3, 0, 0]
    (whole * torch.arange(5.0, device=devices[1])).sum().backward()
    assert source.grad.tolist() == [3, 6]


def test_an_in_place_change_is_seen_by_autograd(devices: Devices) -> None:
    weight = torch.ones(2, device=devices[1], requires_grad=True)
    kept = torch.ones(2, device=devices[1])
    product = weight * kept
    copy(torch.zeros(2, device=devices[0]), kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_without_gradients_a_parameter_is_written(devices: Devices) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, device=devices[1]))
    with pytest.raises(ConfigurationError, match="no_grad"):
        copy(torch.ones(2, device=devices[0]), parameter)
    assert parameter.tolist() == [0, 0]
    with torch.no_grad():
        copy(torch.ones(2, device=devices[0]), parameter)
    assert parameter.tolist() == [1, 1]


def test_shapes_must_agree(devices: Devices) -> None:
    with pytest.raises(ConfigurationError, match=r"\(3,\).*\(2, 3\)"):
        copy(torch.ones(3, device=devices[0]), torch.ones(2, 3, device=devices[1]))


def test_a_target_that_shares_its_own_memory_is_refused(devices: Devices) -> None:
    source = torch.ones(2, 3, device=devices[0])
    for target in (torch.ones(3, device=devices[1]).expand(2, 3), torch.ones(9, device=devices[1]).unfold(0, 3, 1)[:2]):
        with pytest.raises(ConfigurationError, match="one place"):
            copy(source, target)
    apart = torch.zeros(9, device=devices[1]).as_strided((2, 3), (1, 2))
    assert torch.equal(copy(source, apart).cpu(), source.cpu())


def test_overlap_is_refused_and_neighbours_are_not(devices: Devices) -> None:
    tensor = torch.arange(12.0, device=devices[0]).view(4, 3)
    with pytest.raises(ConfigurationError, match="overlap"):
        copy(tensor[:3], tensor[1:])
    with pytest.raises(ConfigurationError, match="overlap"):
        copy(tensor.view(torch.uint8)[:, ::4], tensor.view(torch.uint8)[:, 0:3])
    copy(tensor[:, 0], tensor[:, 2])
    assert tensor[:, 2].tolist() == [0, 3, 6, 9]
    assert copy(tensor, tensor) is tensor


def test_move_brings_values_and_gradients(devices: Devices) -> None:
    leaf = torch.ones(3, device=devices[0], requires_grad=True)
    moved = move(leaf * 2, devices[1])
    assert moved.device == devices[1]
    assert move(moved, devices[1]) is moved
    (moved * torch.arange(3.0, device=devices[1])).sum().backward()
    assert leaf.grad.tolist() == [0, 2, 4]
    assert leaf.grad.device == devices[0]


def test_move_twice_differentiated(devices: Devices) -> None:
    leaf = torch.full((2,), 3.0, dtype=torch.float64, device=devices[0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: move(t, devices[1]) ** 3, (leaf,))
    assert torch.autograd.gradgradcheck(lambda t: move(t, devices[1]) ** 3, (leaf,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_started_copy_has_the_form_that_to_gives(devices: Devices, route: str, form: str) -> None:
    if route == "HOST":
        current().lose(*devices, "for the test")
    tensor = forms(values((6, 8), torch.float32).to(devices[0]))[form]
    expected = tensor.to(devices[1])
    for found in (start(tensor, devices[1]).wait(), move(tensor, devices[1])):
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)


def test_what_is_no_plain_tensor_moves_as_torch_moves_it(devices: Devices) -> None:
    batched = torch.vmap(lambda t: move(t, HOST) * 2)(torch.arange(3.0, device=devices[0]))
    assert batched.tolist() == [0, 2, 4]
    assert start(torch.ones(2, device=devices[0]), devices[0]).wait().tolist() == [1, 1]


def test_the_front_door_copies(devices: Devices) -> None:
    source, target = torch.arange(3.0, device=devices[0]), torch.zeros(3, device=devices[1])
    assert poolrt.copy(source, target, non_blocking=True) is target
    assert target.tolist() == [0, 1, 2]
