"""One tensor in parts is one tensor to everyone who asks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poolrt.runtime.regions.running.parted import Parted, brought_together, part_together, parts_of

HOST = torch.device("cpu")


def parted(*shape: int, sizes: tuple[int, ...] = (3, 2)) -> tuple[Tensor, list[Tensor]]:
    """A tensor in parts and the leaves that are its parts."""
    leaves = [torch.randn(*shape, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    return part_together(leaves, HOST), leaves


def whole_of(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The same as one leaf."""
    whole = torch.cat([leaf.detach() for leaf in leaves], -1).requires_grad_()
    return whole, whole


def assert_same_gradients(leaves: list[Tensor], whole: Tensor) -> None:
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in leaves], -1), whole.grad, rtol=1e-12, atol=1e-14)


STAYS = {
    "gelu": F.gelu,
    "gate": lambda x: F.silu(x) * x,
    "scaled": lambda x: 2 * x / 3 + 1,
    "tanh gelu": lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0)))),
    "times a number in a tensor": lambda x: x * torch.tensor(2.0, dtype=torch.float64),
    "cast": lambda x: x.float().double(),
    "to": lambda x: x.to(torch.float32).to(HOST),
    "view": lambda x: x.view(-1, x.shape[-1]),
    "reshape": lambda x: x.reshape((8, x.size(-1))),
    "flatten": lambda x: x.flatten(0, 1),
    "rows": lambda x: x[:, 1:, :],
    "rows with dots": lambda x: x[..., :-1, :].contiguous(),
    "one row": lambda x: x[0],
}
GATHERS = {
    "softmax": lambda x: x.softmax(-1),
    "columns": lambda x: x[..., 1:4],
    "transpose": lambda x: x.transpose(1, 2),
    "matrix product": lambda x: x @ torch.ones(5, 2, dtype=torch.float64),
    "view of another width": lambda x: x.view(2, -1),
    "sum": lambda x: x.sum(-1),
    "concatenate": lambda x: torch.cat([x, x], -1),
    "with a whole tensor": lambda x: x * torch.ones(5, dtype=torch.float64),
    "in place": lambda x: (x * 1).mul_(3),
    "in place, then as it was": lambda x: F.gelu((x * 1).clamp_(min=0)),
    "masked in place": lambda x: _fill(x * 1),
    "linear": lambda x: F.linear(x, torch.eye(5, dtype=torch.float64)),
}


def _fill(x: Tensor) -> Tensor:
    x[..., 0] = 0.0
    return x


@pytest.mark.parametrize("name", [*STAYS, *GATHERS])
def test_work_on_parts_and_on_the_whole_is_the_same(name: str):
    function = {**STAYS, **GATHERS}[name]
    tensor, leaves = parted(2, 4)
    whole, leaf = whole_of(leaves)
    ours, theirs = function(tensor), function(whole)
    assert (type(ours) is Parted and ours.parts is not None) == (name in STAYS)
    assert torch.equal(ours.detach() + 0.0 * theirs.detach(), theirs.detach())
    weight = torch.randn_like(theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert_same_gradients(leaves, leaf)


def test_to_others_it_is_one_tensor():
    tensor, leaves = parted(2, 4)
    assert tensor.shape == (2, 4, 5)
    assert tensor.dtype == torch.float64
    assert tensor.device == HOST
    assert tensor.requires_grad
    assert "Parted" in repr(tensor)
    assert torch.equal(tensor.detach().cpu() * 1.0 + torch.zeros(5), torch.cat(leaves, -1))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_a_function_of_the_users_own_sees_the_whole_and_gives_gradients_back():
    tensor, leaves = parted(3)
    Doubled.apply(tensor).sum().backward()
    assert all(torch.equal(leaf.grad, torch.full_like(leaf, 2.0)) for leaf in leaves)


class TimesTenBackwards(torch.autograd.Function):
    """Gives back what it was given, and ten times the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 10


def test_the_backward_of_a_users_function_is_not_passed_by():
    tensor, leaves = parted(3)
    (TimesTenBackwards.apply(tensor) * 2).sum().backward()
    assert all(torch.equal(leaf.grad, torch.full_like(leaf, 20.0)) for leaf in leaves)
    tensor, leaves = parted(3)
    brought_together(TimesTenBackwards.apply(tensor)).sum().backward()
    assert all(torch.equal(leaf.grad, torch.full_like(leaf, 10.0)) for leaf in leaves)


def test_made_a_leaf_it_keeps_the_gradient():
    tensor, leaves = parted(3)
    leaf = tensor.detach().requires_grad_()
    (leaf * 2).sum().backward()
    assert torch.equal(leaf.grad, torch.full((3, 5), 2.0, dtype=torch.float64))
    assert all(part.grad is None for part in leaves)


def test_made_without_gradients_it_has_none_later():
    with torch.no_grad():
        tensor, _ = parted(3)
    assert not (tensor * 2).requires_grad
    assert not tensor.sum().requires_grad


def test_hooks_and_kept_gradients_see_the_whole_gradient():
    tensor, _ = parted(3)
    seen = []
    tensor.retain_grad()
    tensor.register_hook(lambda gradient: seen.append(gradient.shape))
    F.gelu(tensor).sum().backward()
    assert seen == [(3, 5)]
    assert tensor.grad.shape == (3, 5)


def test_parts_are_given_only_in_the_sizes_asked_for():
    tensor, leaves = parted(2)
    assert parts_of(tensor, (3, 2)) == tuple(leaves)
    assert parts_of(tensor, (2, 3)) is None
    assert parts_of(leaves[0], (3,)) is None
    tensor.sum()
    assert parts_of(tensor, (3, 2)) is None, "who changed the whole in place must find the change"


def test_where_values_come_from_is_remembered_through_single_elements():
    one = part_together(parted(2)[1], HOST, ("gate",))
    two = part_together(parted(2)[1], HOST, ("up",))
    assert (F.silu(one) * two).sources == ("gate", "up")


def test_what_leaves_torch_is_the_whole():
    tensor, leaves = parted(2)
    whole = torch.cat(leaves, -1).detach()
    assert tensor.tolist() == whole.tolist()
    assert (tensor.detach().numpy() == whole.numpy()).all()
    assert type(copy.deepcopy(tensor.detach())) is Tensor
    assert torch.equal(pickle.loads(pickle.dumps(tensor.detach())), whole)


def test_brought_together_it_is_plain_and_keeps_its_history():
    tensor, leaves = parted(2)
    plain = brought_together(tensor)
    assert type(plain) is Tensor
    assert parts_of(tensor, (3, 2)) is not None, "the parts are still there for the loss"
    plain.sum().backward()
    assert all(torch.equal(leaf.grad, torch.ones_like(leaf)) for leaf in leaves)
    assert brought_together(leaves[0]) is leaves[0]
    tensor.sum()
    assert torch.equal(brought_together(tensor) * 1, torch.cat(leaves, -1))


LOSSES = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 2},
    {"label_smoothing": 0.1, "ignore_index": 2},
]


@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_cross_entropy_over_parts(options: dict):
    tensor, leaves = parted(6, sizes=(2, 1, 4))
    whole, leaf = whole_of(leaves)
    target = torch.tensor([0, 2, 6, 3, 2, 1])
    ours, theirs = F.cross_entropy(tensor, target, **options), F.cross_entropy(whole, target, **options)
    assert type(ours) is Tensor
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    ours.sum().backward()
    theirs.sum().backward()
    assert_same_gradients(leaves, leaf)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_loss_of_few_digits_is_summed_in_more(autocast: bool):
    leaves = [torch.randn(6, 500).bfloat16() for _ in range(2)]
    target = torch.randint(1000, (6,))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = F.cross_entropy(torch.cat(leaves, -1), target)
        actual = F.cross_entropy(part_together(leaves, HOST), target)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-5 if autocast else 1e-2, atol=0)


def test_the_loss_does_not_bring_the_logits_together():
    tensor, _ = parted(6)
    F.cross_entropy(tensor.view(-1, 5), torch.zeros(6, dtype=torch.int64)).backward()
    assert tensor.parts is not None


@pytest.mark.parametrize("options", [{"weight": torch.ones(5, dtype=torch.float64)}], ids=["weights"])
def test_other_losses_are_those_of_the_whole(options: dict):
    tensor, leaves = parted(6)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    expected = F.cross_entropy(torch.cat(leaves, -1), target, **options)
    assert torch.equal(F.cross_entropy(tensor, target, **options), expected)


@pytest.mark.parametrize("target", [5, -1])
def test_a_target_that_is_no_class_is_an_error_as_with_torch(target: int):
    tensor, _ = parted(1)
    with pytest.raises(IndexError, match=str(target)):
        F.cross_entropy(tensor, torch.tensor([target]))


def test_huge_logits_do_not_overflow():
    leaves = [torch.tensor([[1e4, -1e4]]), torch.tensor([[9e3]])]
    expected = F.cross_entropy(torch.cat(leaves, -1), torch.tensor([2]))
    assert torch.equal(F.cross_entropy(part_together(leaves, HOST), torch.tensor([2])), expected)


def test_the_largest_of_the_last_dimension():
    leaves = [torch.tensor([[1.0, 5.0], [2.0, 2.0]]), torch.tensor([[5.0], [3.0]])]
    tensor = part_together(leaves, HOST)
    assert tensor.argmax(-1).tolist() == [1, 2], "of equals the first"
    assert torch.argmax(tensor, dim=-1, keepdim=True).tolist() == [[1], [2]]
    assert parts_of(tensor, (2, 1)) is not None
    assert tensor.argmax().item() == 1
