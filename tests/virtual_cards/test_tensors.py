"""Tensors on cards: made, moved, kept, and never mixed in silence."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

MIXED = "Expected all tensors to be on the same device, but found at least two devices"


def test_factories_put_tensors_where_they_are_told():
    made = [
        torch.arange(4, device="vcard:1"),
        torch.rand(3, device="vcard:1"),
        torch.full((2,), 3.0, device="vcard:1"),
        torch.randperm(5, device="vcard:1"),
        torch.eye(3, device="vcard:1"),
        torch.linspace(0, 1, 3, device="vcard:1"),
        torch.tensor([1, 2], device="vcard:1"),
        torch.empty_strided((2, 3), (3, 1), device="vcard:1"),
        torch.empty_like(torch.ones(2, device="vcard:0"), device="vcard:1"),
        torch.ones(2, device="vcard:1").new_zeros(3),
        torch.nn.Linear(3, 3, device="meta").to_empty(device="vcard:1").weight,
    ]
    assert {tensor.device for tensor in made} == {torch.device("vcard:1")}
    with pytest.raises(RuntimeError, match="invalid device ordinal 5"):
        torch.ones(1, device="vcard:5")


def test_copies_between_cards_and_host():
    host = torch.randn(5, 7)[:, ::2]
    there = host.to("vcard:0").to("vcard:1", torch.float64).t()
    back = there.cpu()
    assert torch.equal(back, host.double().t())
    target = torch.zeros(4, 5, dtype=torch.float64, device="vcard:0")
    target.copy_(there, non_blocking=True)
    assert torch.equal(target.cpu(), back)
    target.copy_(torch.arange(5.0))
    assert torch.equal(target.cpu()[3], torch.arange(5.0).double())
    with pytest.raises(TypeError, match="vcard:0"):
        target.numpy()


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: a.add_(b),
        lambda a, b: a @ b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.nn.functional.linear(a, b),
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: torch.add(a, a, out=b),
        lambda a, b: torch.nn.functional.layer_norm(a, (3,), b[0]),
        lambda a, b: torch.baddbmm(a[None], b[None], b[None]),
        lambda a, b: torch.nn.functional.embedding(a.long(), b),
    ],
)
@pytest.mark.parametrize("other", ["vcard:1", "cpu"])
def test_devices_are_not_mixed(mix, other):
    a, b = torch.ones(3, 3, device="vcard:0"), torch.ones(3, 3, device=other)
    with pytest.raises(RuntimeError, match=MIXED) as caught:
        mix(a, b)
    assert "vcard:0" in str(caught.value)
    assert other in str(caught.value)


def test_a_recurrent_layer_is_not_mixed_either():
    layer = nn.LSTM(3, 3, device="vcard:0")
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 1, 3, device="vcard:1"))


def test_numbers_and_indices_from_the_host_are_welcome():
    a = torch.arange(6.0, device="vcard:1").view(2, 3)
    assert (a * torch.tensor(2.0)).device == a.device
    assert torch.equal(a[torch.tensor([1, 0])].cpu(), a.cpu()[[1, 0]])
    a[torch.tensor([0])] = 5.0
    assert a[0].tolist() == [5, 5, 5]
    with pytest.raises(RuntimeError, match=MIXED):
        a[torch.tensor([0], device="vcard:0")]


def test_views_share_memory_and_writes_show():
    a = torch.zeros(4, 4, device="vcard:0")
    a.t()[1:, 2].fill_(1)
    a.view(16)[0] = 7
    a[3:].unsqueeze(0).unfold(2, 2, 1).sub_(0)
    assert a.data_ptr() == a.view(16).data_ptr() == a.t().data_ptr()
    expected = torch.zeros(4, 4)
    expected.t()[1:, 2].fill_(1)
    expected.view(16)[0] = 7
    assert torch.equal(a.cpu(), expected)
    assert a.t()._base is a


def test_complex_numbers_and_lazy_bits():
    host = torch.randn(3, 4, dtype=torch.complex64)
    card = host.to("vcard:1")
    assert card.conj().is_conj()
    assert card.conj().imag.is_neg()
    for function in (
        lambda z: z.conj() @ z.t(),
        lambda z: z.conj().imag + z.real,
        lambda z: torch.view_as_real(z.conj().resolve_conj()),
        lambda z: torch.fft.fft(z.conj()).abs(),
        lambda z: torch.view_as_complex(torch.view_as_real(z) * 2),
        lambda z: (z.conj() * 2).conj().clone(),
    ):
        assert torch.equal(function(card).cpu(), function(host))
    assert torch.equal(card.conj().to("vcard:0").cpu(), host.conj())


@pytest.mark.parametrize(("origin", "home"), [("cpu", "vcard:0"), ("vcard:0", "vcard:1"), ("vcard:1", "cpu")])
def test_a_copy_into_a_lazy_conjugate_or_negative_is_written_through(origin: str, home: str):
    values = torch.randn(4, dtype=torch.complex64)
    written = torch.zeros(4, dtype=torch.complex64, device=home)
    written.conj().copy_(values.to(origin))
    assert torch.equal(written.cpu(), values.conj().resolve_conj())
    written.conj().imag.copy_(values.real.to(origin))
    assert torch.equal(written.imag.cpu(), -values.real)


def test_moving_a_module_keeps_its_parameters_and_ties():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    weight = model["embed"].weight
    model.to("vcard:1")
    assert model["embed"].weight is model["head"].weight is weight
    assert weight.device == torch.device("vcard:1")
    assert weight.is_leaf
    model.vcard(0)
    assert weight.device == torch.device("vcard:0")
    assert weight.is_vcard
    model.cpu()
    assert model["head"].weight is weight


def test_saved_and_loaded():
    tensors = {"a": torch.randn(3, device="vcard:0"), "b": torch.randn(4, device="vcard:1")[1:]}
    file = io.BytesIO()
    torch.save(tensors, file)

    def load(where=None):
        file.seek(0)
        return torch.load(file, map_location=where)

    for where, devices in (
        (None, ("vcard:0", "vcard:1")),
        ("cpu", ("cpu", "cpu")),
        ("vcard:1", ("vcard:1", "vcard:1")),
    ):
        loaded = load(where)
        assert [str(loaded[name].device) for name in "ab"] == list(devices)
        assert all(torch.equal(loaded[name].cpu(), tensors[name].cpu()) for name in "ab")
    assert load({"vcard:1": "vcard:0"})["b"].device == torch.device("vcard:0")


def test_pickled_and_copied():
    weight = nn.Parameter(torch.randn(3, device="vcard:1"))
    for twin in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight)):
        assert isinstance(twin, nn.Parameter)
        assert twin.device == weight.device
        assert torch.equal(twin.cpu(), weight.cpu())
        assert twin.data_ptr() != weight.data_ptr()
    shared = copy.deepcopy([weight, weight])
    assert shared[0] is shared[1]


def test_memory_of_others_is_computed_on():
    """A tensor may arrive on memory that no card handed out; results are the card's own."""
    host = torch.arange(4.0)
    alien = torch.empty(0, device="vcard:0")
    alien.data = host.to("vcard:0")
    assert (alien + 1).tolist() == [1, 2, 3, 4]


def test_an_operator_of_the_users_own_runs_its_cpu_kernel():
    library = torch.library.Library("poolrt_test", "FRAGMENT")
    library.define("twice(Tensor x, Tensor(a!) count) -> (Tensor, Tensor[])")

    def twice(x, count):
        count.add_(1)
        return x * 2, [x + 1, x + 2]

    library.impl("twice", twice, "CPU")
    x, count = torch.ones(3, device="vcard:1"), torch.zeros(1, device="vcard:1")
    doubled, others = torch.ops.poolrt_test.twice(x, count)
    assert [doubled.device, *(other.device for other in others)] == [x.device] * 3
    assert (doubled.tolist(), others[1].tolist(), count.item()) == ([2] * 3, [3] * 3, 1)
    library._destroy()


def test_lists_may_span_cards():
    def lists(first, second):
        return [torch.ones(2, device=first), torch.arange(3.0, device=second)]

    spread, host = lists("vcard:0", "vcard:1"), lists("cpu", "cpu")
    for function in (
        lambda tensors: torch._foreach_add(tensors, tensors),
        lambda tensors: torch._foreach_mul(tensors, [2.0, 3.0]),
        lambda tensors: torch._foreach_norm(tensors),
        lambda tensors: torch._foreach_addcmul(tensors, tensors, tensors, value=0.5),
        lambda tensors: torch._foreach_add_(tensors, 1.0) or tensors,
    ):
        for found, expected in zip(function(spread), function(host), strict=True):
            assert torch.equal(found.cpu(), expected)
    assert [tensor.device.index for tensor in torch._foreach_neg(spread)] == [0, 1]
    with pytest.raises(RuntimeError, match=MIXED):
        torch._foreach_add(spread, spread[::-1])


def test_layouts_that_cards_do_not_hold_are_refused():
    x = torch.eye(3, device="vcard:0")
    with pytest.raises(RuntimeError, match=r"virtual card|vcard"):
        x.to_sparse()
    with pytest.raises(RuntimeError, match=r"virtual card|vcard"):
        x.to_mkldnn()
    with pytest.raises(RuntimeError, match=r"virtual card|vcard"):
        torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def test_lazily_allocated_gradients_have_the_right_device():
    x = torch.ones(2, device="vcard:1", requires_grad=True)
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            seen.append((gradient.device, torch.vcard.current_device(), threading.get_ident()))
            return gradient

    Watch.apply(x).cpu().sum().backward()
    assert seen[0][:2] == (torch.device("vcard:1"), 1)
    assert seen[0][2] != threading.get_ident()
    with torch.autograd.set_multithreading_enabled(False):
        Watch.apply(x).cpu().sum().backward()
    assert seen[1][2] == threading.get_ident()
    assert x.grad.device == x.device


def test_vmap_jvp_and_einsum():
    x = torch.randn(3, 4, device="vcard:0")
    assert torch.equal(torch.vmap(torch.sin)(x).cpu(), x.cpu().sin())
    assert torch.func.jvp(torch.sin, (x,), (x,))[1].device == x.device
    assert torch.equal(torch.einsum("ij,kj->ik", x, x).cpu(), torch.einsum("ij,kj->ik", x.cpu(), x.cpu()))
