"""A sharded parameter is the user's parameter: identity, gradients and hooks are those of an ordinary one.

    parameter (leaf, whole) --+-- used whole: gathered for the operator
                              |--[ join ]-- piece 0 on card 0
                              '--[ join ]-- piece 1 on card 1

Every test compares with an ordinary parameter on one card.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.convert import shard_parameter, unshard_parameter
from poolrt.runtime.sharded.parameter import (
    ShardedParameter,
    cut_off_pieces,
    gradient_from_pieces,
    pieces,
    take_gradient,
)
from poolrt.runtime.sharded.tensor import ShardedTensor

Devices = tuple[torch.device, ...]
Twins = Callable[[], tuple[nn.Module, nn.Module]]
WAYS = [False, True]


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(tokens).logsumexp(-1).mean()


def assert_same_gradients(sharded: nn.Module, ordinary: nn.Module) -> None:
    for name, parameter in ordinary.named_parameters():
        gradient = sharded.get_parameter(name).grad
        assert gradient.shape == parameter.shape
        torch.testing.assert_close(gradient.cpu(), parameter.grad.cpu(), rtol=1e-12, atol=1e-14, msg=name)


def make_parameter(devices: Devices, *, learns: bool = True) -> tuple[ShardedParameter, nn.Parameter]:
    """A matrix split over its columns, and an ordinary one with its values on the first card."""
    ordinary = nn.Parameter(torch.randn(4, 6, dtype=torch.float64).to(devices[0]), requires_grad=learns)
    sharded = nn.Parameter(ordinary.detach().clone(), requires_grad=learns)
    return shard_parameter(sharded, Split.from_counts((2, 4), dim=1), devices[:2]), ordinary


def by_piece(parameter: ShardedParameter, x: Tensor) -> Tensor:
    """(x @ parameter).pow(2).sum(), each card with its columns."""
    parts = [(x.to(piece.device) @ piece).pow(2).sum().to(x.device) for piece in pieces(parameter)]
    return sum(parts[1:], parts[0])


def test_it_is_the_same_object_and_looks_as_before(devices: Devices) -> None:
    parameter = nn.Parameter(torch.randn(4, 6).to(devices[0]))
    values, number = parameter.detach().cpu(), id(parameter)
    module = nn.Module()
    module.weight, module.tied = parameter, parameter
    parameter.users_own = "kept"
    shard_parameter(parameter, Split.from_counts((3, 1)), devices[:2])
    assert id(module.weight) == number
    assert module.tied is module.weight is parameter
    assert isinstance(parameter, nn.Parameter)
    assert (parameter.shape, parameter.dtype, parameter.device) == ((4, 6), torch.float32, devices[0])
    assert (parameter.is_leaf, parameter.requires_grad, parameter.grad) == (True, True, None)
    assert parameter.numel() == 24
    assert parameter.nbytes == 96
    assert parameter.stride() == (6, 1)
    assert parameter.users_own == "kept"
    assert torch.equal(parameter.cpu(), values)
    assert [name for name, _ in module.named_parameters(remove_duplicate=False)] == ["weight", "tied"]
    assert [tuple(piece.shape) for piece in parameter.pieces] == [(3, 6), (1, 6)]
    assert [piece.device for piece in parameter.pieces] == list(devices[:2])


@pytest.mark.parametrize("way", WAYS, ids=["whole", "by piece"])
def test_gradients_are_those_of_an_ordinary_model(way: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = way
    for _ in range(2):  # the second time they accumulate
        for model in (sharded, ordinary):
            loss_of(model, tokens).backward()
        assert_same_gradients(sharded, ordinary)
        assert all(isinstance(p.grad, ShardedTensor) for p in sharded.parameters() if isinstance(p, ShardedParameter))


def test_uses_of_the_whole_and_of_pieces_add_up(devices: Devices) -> None:
    sharded, ordinary = make_parameter(devices)
    x = torch.randn(3, 4, dtype=torch.float64).to(devices[0])
    (by_piece(sharded, x) + (x @ sharded).sum() + sharded.pow(3).mean() + sharded.norm()).backward()
    ((x @ ordinary).pow(2).sum() + (x @ ordinary).sum() + ordinary.pow(3).mean() + ordinary.norm()).backward()
    assert isinstance(sharded.grad, ShardedTensor)
    torch.testing.assert_close(sharded.grad.cpu(), ordinary.grad.cpu(), rtol=1e-12, atol=1e-14)


def test_pieces_of_the_gradient_are_not_copied(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    seen: list[int] = []
    kept = pieces(sharded)
    for piece in kept:
        piece.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    by_piece(sharded, torch.ones(3, 4, dtype=torch.float64, device=devices[0])).backward()
    assert sorted(seen) == sorted(piece.data_ptr() for piece in sharded.grad.pieces)


def test_a_card_without_a_gradient_has_zeros(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    kept = pieces(sharded)
    kept[1].sum().backward()
    assert sharded.grad.cpu().tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]] * 4


def test_what_is_on_several_cards_gets_the_sum_of_their_gradients(devices: Devices) -> None:
    """Two key-value heads of one row on four cards (two of them here on one device): 0 0 1 1."""
    parameter = nn.Parameter(torch.randn(2, 3, dtype=torch.float64).to(devices[0]))
    split = Split(dim=0, pieces=(((0, 1),), ((0, 1),), ((1, 2),), ((1, 2),)), replicated=((0, 2),))
    shard_parameter(parameter, split, (*devices, devices[0]))
    parts = [(card + 1) * piece.sum().to(devices[0]) for card, piece in enumerate(pieces(parameter))]
    sum(parts[1:], parts[0]).backward()
    assert parameter.grad.cpu().tolist() == [[3.0] * 3, [7.0] * 3]
    assert [piece.flatten()[0].item() for piece in parameter.grad.pieces] == [3.0, 3.0, 7.0, 7.0]
    assert parameter.grad.sum().item() == 30.0
    assert parameter.grad.norm().item() == pytest.approx((3 * 9 + 3 * 49) ** 0.5)
    torch.optim.SGD([parameter], lr=0.1).step()
    first, again, second, and_again = (piece.cpu() for piece in parameter.pieces)
    assert torch.equal(first, again)
    assert torch.equal(second, and_again)


# ---- hooks


@pytest.mark.parametrize("before", [True, False], ids=["made before", "made after"])
@pytest.mark.parametrize("way", WAYS, ids=["whole", "by piece"])
def test_hooks_see_one_whole_gradient_and_may_change_it(before: bool, way: bool, devices: Devices) -> None:
    ordinary = nn.Parameter(torch.randn(4, 6, dtype=torch.float64).to(devices[0]))
    sharded = nn.Parameter(ordinary.detach().clone())
    seen: list[tuple[str, nn.Parameter, Tensor]] = []

    def watch(parameter: nn.Parameter) -> list:
        return [
            parameter.register_hook(lambda g: seen.append(("gradient", parameter, g.cpu())) or 2 * g),
            parameter.register_hook(lambda g: seen.append(("doubled", parameter, g.cpu()))),
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p, p.grad.cpu()))),
        ]

    handles = [*watch(ordinary), *(watch(sharded) if before else [])]
    shard_parameter(sharded, Split.from_counts((2, 4), dim=1), devices[:2])
    if not before:
        handles += watch(sharded)
    x = torch.randn(3, 4, dtype=torch.float64).to(devices[0])
    (x @ ordinary).pow(2).sum().backward()
    (by_piece(sharded, x) if way else (x @ sharded).pow(2).sum()).backward()
    assert [what for what, _, _ in seen] == ["gradient", "doubled", "after"] * 2
    for (_, one, expected), (_, other, found) in zip(seen[:3], seen[3:], strict=True):
        assert (one, other) == (ordinary, sharded)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for handle in handles:
        handle.remove()
    seen.clear()
    by_piece(sharded, x).backward()
    assert seen == []
    assert isinstance(sharded.grad, ShardedTensor)


def test_hooks_of_a_frozen_parameter_are_kept(devices: Devices) -> None:
    parameter = nn.Parameter(torch.ones(4, 6, device=devices[0]))
    seen: list[str] = []
    parameter.register_hook(lambda gradient: seen.append(type(gradient).__name__))
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append("after"))
    parameter.requires_grad_(False)
    shard_parameter(parameter, Split.from_counts((2, 4), dim=1), devices[:2])
    parameter.requires_grad_(True).sum().backward()
    assert seen == ["ShardedTensor", "after"]


def test_hooks_outlive_the_split(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    seen: list[type] = []
    handle = sharded.register_hook(lambda gradient: seen.append(type(gradient)))
    unshard_parameter(sharded)
    sharded.sum().backward()
    assert seen == [Tensor]
    handle.remove()
    sharded.sum().backward()
    assert seen == [Tensor]


def step_and_free(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    optimizer.step()
    optimizer.zero_grad()


def test_a_hook_may_step_and_free_each_parameter(twins: Twins, tokens: Tensor) -> None:
    """Optimizer in backward: as soon as a gradient is there it is used and let go."""
    sharded, ordinary = twins()
    sharded.by_piece = True
    for model in (sharded, ordinary):
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(step_and_free, torch.optim.SGD([parameter], lr=0.1)))
            for parameter in model.parameters()
        ]
        loss_of(model, tokens).backward()
        for handle in handles:  # torch never frees a parameter that its own hook holds
            handle.remove()
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert parameter.grad is None
        torch.testing.assert_close(parameter.cpu(), expected.cpu(), rtol=1e-12, atol=1e-14)


# ---- other ways to ask for gradients


@pytest.mark.parametrize("way", WAYS, ids=["whole", "by piece"])
def test_autograd_grad_gives_the_gradient_of_the_whole(way: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = way
    found, expected = (torch.autograd.grad(loss_of(m, tokens), list(m.parameters())) for m in (sharded, ordinary))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-12, atol=1e-14)
    assert sharded.up.weight.grad is None


def test_backward_for_some_inputs(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = True
    for model in (sharded, ordinary):
        loss_of(model, tokens).backward(inputs=[model.down.weight])
    assert sharded.up.weight.grad is None
    torch.testing.assert_close(sharded.down.weight.grad.cpu(), ordinary.down.weight.grad.cpu(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS, ids=["whole", "by piece"])
def test_gradients_of_gradients(way: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = way
    for model in (sharded, ordinary):
        gradients = torch.autograd.grad(loss_of(model, tokens), list(model.parameters()), create_graph=True)
        sum(gradient.pow(2).sum() for gradient in gradients).backward()
    assert_same_gradients(sharded, ordinary)


def test_the_same_graph_twice(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    loss = by_piece(sharded, torch.ones(2, 4, dtype=torch.float64, device=devices[0]))
    loss.backward(retain_graph=True)
    once = sharded.grad.cpu()
    loss.backward()
    assert torch.equal(sharded.grad.cpu(), 2 * once)


# ---- .grad


def test_a_gradient_may_be_assigned(devices: Devices) -> None:
    sharded, ordinary = make_parameter(devices)
    for parameter in (sharded, ordinary):
        given = torch.full((4, 6), 2.0, dtype=torch.float64, device=devices[0])
        parameter.grad = given
        assert parameter.grad is given
        parameter.sum().backward()
        assert given.flatten()[0].item() == 3.0  # as ever: it is accumulated into what was assigned
        torch.optim.SGD([parameter], lr=0.5).step()
    assert torch.equal(sharded.cpu(), ordinary.cpu())
    sharded.grad = None
    assert sharded.grad is None
    with pytest.raises(RuntimeError):
        sharded.grad = torch.ones(2, 2, device=devices[0])


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_gradients_are_zeroed(to_none: bool, foreach: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, _ = twins()
    loss_of(sharded, tokens).backward()
    torch.optim.SGD(sharded.parameters(), foreach=foreach).zero_grad(set_to_none=to_none)
    for parameter in sharded.parameters():
        assert parameter.grad is None if to_none else parameter.grad.abs().sum().item() == 0.0
    loss_of(sharded, tokens).backward()
    assert sharded.up.weight.grad.abs().sum().item() > 0
    sharded.zero_grad(set_to_none=to_none)
    assert (sharded.up.weight.grad is None) == to_none


# ---- requires_grad


def test_pieces_learn_as_the_whole_does(devices: Devices) -> None:
    sharded, _ = make_parameter(devices, learns=False)
    kept = pieces(sharded)
    x = torch.ones(2, 4, dtype=torch.float64, device=devices[0])
    assert not by_piece(sharded, x).requires_grad
    sharded.requires_grad_()
    assert all(new is old for new, old in zip(pieces(sharded), kept, strict=True))
    by_piece(sharded, x).backward()
    assert isinstance(sharded.grad, ShardedTensor)
    sharded.requires_grad = False
    assert not any(piece.requires_grad for piece in kept)
    module = nn.Module()
    module.weight = sharded
    module.requires_grad_(True)
    assert all(piece.requires_grad for piece in kept)


# ---- the pieces follow the values


def test_a_graph_whose_values_were_overwritten_refuses_its_backward(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    x = torch.ones(2, 4, dtype=torch.float64, device=devices[0], requires_grad=True)
    for loss in (by_piece(sharded, x), (x @ sharded).sum()):
        with torch.no_grad():
            sharded.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_pieces_in_use_follow_data_and_dtype(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    kept = pieces(sharded)
    before = sharded.data
    sharded.data = torch.zeros_like(before)
    assert sum(piece.abs().sum().item() for piece in kept) == 0
    assert before.abs().sum().item() > 0  # whoever kept the old values still has them
    sharded.data = before
    assert torch.equal(kept[0].cpu(), before.cpu()[:, :2])
    with torch.no_grad():
        sharded.zero_()
    assert before.abs().sum().item() == 0  # and is a name of the same values
    module = nn.Module()
    module.weight = sharded
    module.to(torch.float32)
    assert module.weight is sharded
    assert [piece.dtype for piece in kept] == [torch.float32] * 2
    by_piece(sharded, torch.ones(2, 4, device=devices[0])).backward()
    assert sharded.grad.dtype == torch.float32


def test_who_holds_one_piece_has_it_for_good(devices: Devices) -> None:
    """As regions do: each card's copy of a module holds its own piece and lets go of the others."""
    sharded, _ = make_parameter(devices, learns=False)
    first = pieces(sharded)[0]
    second = pieces(sharded)[1]
    assert pieces(sharded)[0] is first
    assert pieces(sharded)[1] is second
    sharded.requires_grad_(True)
    assert first.requires_grad
    assert second.requires_grad
    (first.sum() + 2 * second.sum().to(devices[0])).backward()
    assert sharded.grad.cpu().tolist() == [[1.0, 1.0, 2.0, 2.0, 2.0, 2.0]] * 4
    sharded.data = torch.zeros_like(sharded.data)
    assert first.abs().sum().item() == second.abs().sum().item() == 0.0


def test_pieces_do_not_keep_the_parameter_nor_it_them(devices: Devices) -> None:
    sharded, _ = make_parameter(devices)
    reference = weakref.ref(sharded)
    kept = pieces(sharded)
    held = [weakref.ref(piece) for piece in kept]
    del kept
    gc.collect()
    assert [piece() for piece in held] == [None, None]
    del sharded
    gc.collect()
    assert reference() is None


def test_an_ordinary_parameter_has_no_pieces() -> None:
    with pytest.raises(ModelError, match="not split"):
        pieces(nn.Parameter(torch.ones(2)))
    for ask in (take_gradient, cut_off_pieces, lambda parameter: gradient_from_pieces(parameter, [])):
        with pytest.raises(ModelError, match="not split"):
            ask(nn.Parameter(torch.ones(2)))


def test_pieces_that_are_cut_off_are_leaves(devices: Devices) -> None:
    """Two backwards of lanes gather in the pieces; the cut node hands the sum over, and hooks see it once."""
    sharded, ordinary = make_parameter(devices)
    seen: list[Tensor] = []
    handle = sharded.register_hook(seen.append)
    kept = pieces(sharded)
    cut_off_pieces(sharded)
    assert all(piece.is_leaf and piece.requires_grad for piece in pieces(sharded))
    assert all(new is old for new, old in zip(pieces(sharded), kept, strict=True))
    x = torch.randn(2, 3, 4, dtype=torch.float64).to(devices[0])
    for part in x:
        by_piece(sharded, part).backward()
    assert sharded.grad is None
    assert seen == []
    addresses = [piece.grad.data_ptr() for piece in kept]
    gradient = take_gradient(sharded)
    assert [piece.data_ptr() for piece in gradient.pieces] == addresses
    assert [piece.grad for piece in kept] == [None, None]
    assert take_gradient(sharded) is None
    torch.autograd.backward([sharded], [gradient])  # as the engine does with what a node returns
    (x @ ordinary).pow(2).sum().backward()
    torch.testing.assert_close(sharded.grad.cpu(), ordinary.grad.cpu(), rtol=1e-12, atol=1e-14)
    assert [tuple(gradient.shape) for gradient in seen] == [(4, 6)]
    sharded.requires_grad_(False)
    assert not any(piece.requires_grad for piece in kept)
    sharded.requires_grad_(True)
    cut_off_pieces(sharded, cut=False)
    assert not any(piece.is_leaf for piece in kept)
    by_piece(sharded, x[0]).backward()
    assert len(seen) == 2
    handle.remove()


def test_a_gradient_from_stand_ins_for_the_pieces(devices: Devices) -> None:
    """As a cut node does it: leaves of its own over the same values, and their gradients handed over whole."""
    sharded, ordinary = make_parameter(devices)
    x = torch.randn(3, 4, dtype=torch.float64).to(devices[0])
    leaves = [piece.detach().requires_grad_() for piece in sharded.pieces]
    sum((x.to(leaf.device) @ leaf).pow(2).sum().to(x.device) for leaf in leaves).backward()
    F.linear(x, ordinary.t()).pow(2).sum().backward()
    gradient = gradient_from_pieces(sharded, [leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradient.cpu(), ordinary.grad.cpu(), rtol=1e-12, atol=1e-14)
    assert [piece.data_ptr() for piece in gradient.pieces] == [leaf.grad.data_ptr() for leaf in leaves]
    assert gradient_from_pieces(sharded, [None, None]) is None
    half = gradient_from_pieces(sharded, [None, leaves[1].grad])
    assert half.cpu()[:, :2].abs().sum() == 0
