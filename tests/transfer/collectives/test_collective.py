"""Collectives among virtual cards: values, bits, gradients, refusals; by every algorithm.

         one shot        two shots                ring
card 0   x0+x1+x2        a0+a1+a2  a b c          c0  b2+b0  a1+a2+a0  a b c
card 1   x0+x1+x2        b0+b1+b2  a b c          a1  c0+c1  b2+b0+b1  a b c
card 2   x0+x1+x2        c0+c1+c2  a b c          b2  a1+a2  c0+c1+c2  a b c
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.transfer import bounce, routes
from poolrt.transfer.collectives import collective

WAYS = ("one shot", "two shots", "ring")
MOST_CARDS = 4
RELAXED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(scope="module")
def cards() -> Iterator[list[torch.device]]:
    topology = poolrt.virtual(cards=MOST_CARDS, memory="64MiB")
    yield [torch.device(card.device) for card in topology.cards]
    routes.current().forget("vcard")
    bounce.release()


def brought(cards, shape=(5, 3), dtype=torch.float64, requires_grad=False):
    """A different tensor on every card."""
    random = torch.Generator().manual_seed(11)
    values = [(torch.randn(shape, generator=random, dtype=torch.float64) * 10).to(dtype) for _ in cards]
    return [value.to(card).requires_grad_(requires_grad) for value, card in zip(values, cards, strict=True)]


def on_host(tensors):
    return [tensor.detach().cpu() for tensor in tensors]


def sum_in_order(tensors):
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = total + tensor
    return total


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", range(1, MOST_CARDS + 1))
def test_all_cards_get_the_sum(cards, way, count):
    tensors = brought(cards[:count])
    results = collective.all_reduce(tensors, way=way)
    assert [result.device for result in results] == cards[:count]
    host = on_host(results)
    assert all(torch.equal(host[0], other) for other in host)
    expected = sum_in_order(on_host(tensors))
    if way == "ring":
        torch.testing.assert_close(host[0], expected, rtol=1e-14, atol=1e-14)
    else:
        assert torch.equal(host[0], expected)


@settings(max_examples=30, **RELAXED)
@given(
    count=st.integers(1, MOST_CARDS),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.int16, torch.bool, torch.complex64]),
    way=st.sampled_from([None, *WAYS]),
)
def test_any_shape_and_type(cards, count, shape, dtype, way):
    tensors = brought(cards[:count], shape, dtype)
    host = on_host(tensors)
    total = sum_in_order(host)
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype.is_floating_point or dtype.is_complex else {"rtol": 0, "atol": 0}
    for found in on_host(collective.all_reduce(tensors, way=way)):
        torch.testing.assert_close(found, total, **close)
    torch.testing.assert_close(collective.reduce(tensors, cards[count - 1], way=way).cpu(), total, **close)
    copies = collective.broadcast(tensors[0], cards[:count], way=way)
    assert all(torch.equal(copy, host[0]) for copy in on_host(copies))
    if shape:
        joined = torch.cat(host, -1)
        assert all(torch.equal(found, joined) for found in on_host(collective.all_gather(tensors, -1, way=way)))
        assert torch.equal(collective.gather(tensors, cards[0], -1).cpu(), joined)
        parts = zip(collective.reduce_scatter(tensors, -1), total.tensor_split(count, -1), strict=True)
        assert sum(found.numel() for found, _ in parts) == total.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["one shot", "two shots"])
def test_half_precision_is_summed_in_float32_and_rounded_once(cards, dtype, way):
    tensors = brought(cards, (40,), dtype)
    expected = sum_in_order([tensor.float() for tensor in on_host(tensors)]).to(dtype)
    assert torch.equal(collective.reduce(tensors, cards[2], way=way).cpu(), expected)
    assert not torch.equal(sum_in_order(on_host(tensors)), expected)


def test_the_bits_do_not_depend_on_who_asks(cards):
    tensors = brought(cards, (1000,), torch.float32)
    sums = [collective.reduce(tensors, card, way=way).cpu() for card in cards for way in ("one shot", "two shots")]
    assert all(torch.equal(sums[0], other) for other in sums)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_a_broadcast_are_summed(cards, way):
    (x,) = brought(cards[1:2], requires_grad=True)
    copies = collective.broadcast(x, cards, way=way)
    loss = sum((copy * (card + 1)).sum().cpu() for card, copy in enumerate(copies))
    loss.backward()
    assert torch.equal(x.grad.cpu(), torch.full((5, 3), 10.0, dtype=torch.float64))


def test_copies_that_nobody_used_bring_no_gradient(cards):
    (x,) = brought(cards[:1], requires_grad=True)
    copies = collective.broadcast(x, cards)
    (copies[2] * 3).sum().backward()
    assert torch.equal(x.grad.cpu(), torch.full((5, 3), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_a_reduction_are_broadcast(cards, way):
    tensors = brought(cards, requires_grad=True)
    factors = torch.arange(15.0, dtype=torch.float64).reshape(5, 3)
    (collective.reduce(tensors, cards[3], way=way) * factors.to(cards[3])).sum().backward()
    assert all(torch.equal(tensor.grad.cpu(), factors) for tensor in tensors)
    assert [tensor.grad.device for tensor in tensors] == cards


@pytest.mark.parametrize("used", [(0,), (1, 3), (0, 1, 2, 3)])
def test_gradients_of_an_all_reduction_are_summed_on_every_card(cards, used):
    tensors = brought(cards, requires_grad=True)
    results = collective.all_reduce(tensors)
    sum((results[card] * (card + 1)).sum().cpu() for card in used).backward()
    expected = float(sum(card + 1 for card in used))
    assert all(torch.equal(tensor.grad.cpu(), torch.full((5, 3), expected).double()) for tensor in tensors)


@pytest.mark.parametrize("used", [(1,), (0, 1, 2)])
def test_gradients_of_gathered_parts_go_back_to_them(cards, used):
    lengths = (2, 0, 3)
    tensors = [
        brought([card], (length, 2), requires_grad=True)[0] for card, length in zip(cards, lengths, strict=False)
    ]
    results = collective.all_gather(tensors)
    factors = torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    sum((results[card] * factors.to(cards[card])).sum().cpu() for card in used).backward()
    for tensor, part in zip(tensors, factors.split(lengths), strict=True):
        assert torch.equal(tensor.grad.cpu(), part * len(used))


def test_scatter_and_gather_undo_each_other(cards):
    (x,) = brought(cards[:1], (4, 7), requires_grad=True)
    parts = collective.scatter(x, cards, dim=1)
    assert [part.shape[1] for part in parts] == [1, 2, 2, 2]
    whole = collective.gather(parts, cards[2], dim=1)
    assert torch.equal(whole.detach().cpu(), x.detach().cpu())
    (whole * 2).sum().backward()
    assert torch.equal(x.grad.cpu(), torch.full((4, 7), 2.0, dtype=torch.float64))


def test_gradients_of_a_scattered_sum_are_gathered(cards):
    tensors = brought(cards[:2], (5, 2), requires_grad=True)
    parts = collective.reduce_scatter(tensors, sizes=(4, 1))
    assert [tuple(part.shape) for part in parts] == [(4, 2), (1, 2)]
    sum((part * (card + 1)).sum().cpu() for card, part in enumerate(parts)).backward()
    expected = torch.tensor([1.0] * 4 + [2.0], dtype=torch.float64)[:, None].expand(5, 2)
    assert all(torch.equal(tensor.grad.cpu(), expected) for tensor in tensors)


def test_gradients_have_gradients(cards):
    x = torch.tensor(3.0, dtype=torch.float64, device=cards[0], requires_grad=True)
    total = collective.reduce([copy**3 for copy in collective.broadcast(x, cards[:2])], cards[0])
    (slope,) = torch.autograd.grad(total, x, create_graph=True)
    (bend,) = torch.autograd.grad(slope, x)
    assert (slope.item(), bend.item()) == (54.0, 36.0)


def test_a_fork_and_a_join_train_as_one_card_does(cards):
    """A column-parallel and a row-parallel linear layer, the use that tensor parallelism makes of this."""
    x = torch.randn(6, 8, dtype=torch.float64)
    first, second = torch.randn(8, 12, dtype=torch.float64), torch.randn(12, 8, dtype=torch.float64)

    def grown(where):
        return [tensor.clone().to(where).requires_grad_() for tensor in (x, first, second)]

    alone = grown("cpu")
    (torch.relu(alone[0] @ alone[1]) @ alone[2]).sum().backward()
    forked = grown(cards[0])
    columns, rows = collective.scatter(forked[1], cards[:3], 1), collective.scatter(forked[2], cards[:3], 0)
    inputs = collective.broadcast(forked[0], cards[:3])
    partial = [torch.relu(x @ c) @ r for x, c, r in zip(inputs, columns, rows, strict=True)]
    collective.reduce(partial, cards[0]).sum().backward()
    for one, many in zip(alone, forked, strict=True):
        torch.testing.assert_close(many.grad.cpu(), one.grad, rtol=1e-13, atol=1e-13)


def test_what_is_on_its_card_is_not_copied_and_cannot_be_changed_in_place(cards):
    (x,) = brought(cards[:1], requires_grad=True)
    copies = collective.broadcast(x, cards[:2])
    assert copies[0].data_ptr() == x.data_ptr()
    with pytest.raises(RuntimeError, match="inplace"):
        copies[0].add_(1)


def test_strides_of_any_kind(cards):
    (whole,) = brought(cards[:1], (6, 4))
    for view in (whole.t(), whole[::2], whole[:1].expand(3, 4), whole[:, 1]):
        for way in WAYS:
            copies = collective.broadcast(view, cards[:3], way=way)
            assert all(torch.equal(copy.cpu(), view.cpu()) for copy in copies)
            total = collective.reduce([view, *copies[1:]], cards[1], way=way)
            assert torch.allclose(total.cpu(), 3 * view.cpu())


def test_a_device_that_brings_nothing_may_ask_for_the_sum(cards):
    tensors = brought(cards[:2])
    assert torch.equal(collective.reduce(tensors, cards[3]).cpu(), sum_in_order(on_host(tensors)))
    (x,) = brought(cards[3:])
    assert all(torch.equal(copy.cpu(), x.cpu()) for way in WAYS for copy in collective.broadcast(x, cards[:2], way=way))


def test_what_does_not_fit_together_is_named(cards):
    first, second = brought(cards[:2])
    with pytest.raises(ConfigurationError, match="tensor 1"):
        collective.all_reduce([first, second[:4]])
    with pytest.raises(ConfigurationError, match="tensor 1"):
        collective.reduce([first, second.float()], cards[0])
    with pytest.raises(ConfigurationError, match="tensor 1"):
        collective.all_gather([first, second[:, :2]], dim=0)
    with pytest.raises(ConfigurationError):
        collective.gather([first, second], cards[0], dim=2)
    with pytest.raises(ConfigurationError):
        collective.scatter(first, cards[:2], sizes=(1, 1))
    with pytest.raises(ConfigurationError):
        collective.reduce_scatter([first, second], sizes=(6, -1))
    with pytest.raises(ConfigurationError):
        collective.broadcast(first, [])
    with pytest.raises(ConfigurationError):
        collective.all_reduce([])
    with pytest.raises(ConfigurationError, match="sparse"):
        collective.broadcast(torch.eye(2).to_sparse(), cards[:2])
