"""To every card and back, in the order of the cards."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import poolrt
from poolrt.transfer.collectives.exchange import Exchange

HOST = torch.device("cpu")


def cards(count):
    return [torch.device(card.device) for card in poolrt.virtual(cards=count, memory="64MiB").cards]


def fork(tensor, devices):
    with Exchange(devices) as exchange:
        copies = exchange.fork(tensor)
        exchange.land_all()
    return copies


def join(parts, lead):
    with Exchange([lead, *(part.device for part in parts[1:])]) as exchange:
        return exchange.join(parts)


BIG, SMALL = 1e16, 1.0  # in fp64 BIG + SMALL + SMALL == BIG, and SMALL + SMALL + BIG is not


def test_sums_follow_the_order_of_the_cards():
    parts = [torch.tensor([value], dtype=torch.float64) for value in (SMALL, SMALL, BIG)]
    assert join(parts, HOST).item() == BIG + 2
    assert join(parts[::-1], HOST).item() == BIG


def test_gradients_of_the_cards_are_added_in_their_order_whichever_comes_first():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for weights, expected in (((SMALL, SMALL, BIG), BIG + 2), ((BIG, SMALL, SMALL), BIG)):
        x.grad = None
        copies = fork(x, [HOST] * 3)
        total = sum(copy * weight for copy, weight in reversed(list(zip(copies, weights, strict=True))))
        total.backward()
        assert x.grad.item() == expected


def test_one_tensor_to_virtual_cards_and_the_sum_on_the_lead():
    devices = cards(3)
    x = torch.arange(3.0, device=devices[0], requires_grad=True)
    copies = fork(x, devices)
    assert [copy.device for copy in copies] == devices
    total = join([copy * (card + 1) for card, copy in enumerate(copies)], devices[0])
    total.sum().backward()
    assert total.device == devices[0]
    assert total.tolist() == [0.0, 6.0, 12.0]
    assert x.grad.tolist() == [6.0, 6.0, 6.0]


def test_a_card_that_does_not_use_its_copy_gives_nothing():
    x = torch.ones(2, requires_grad=True)
    fork(x, [HOST, HOST])[1].sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_without_gradients_nothing_is_recorded():
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert all(copy.grad_fn is None for copy in fork(x, [HOST, HOST]))
    assert fork(torch.ones(2), [HOST])[0].grad_fn is None


def test_one_part_is_no_alias_of_its_sum():
    part = torch.ones(2)
    join([part], HOST).add_(1)
    assert part.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_a_checkpoint_with_card_threads(reentrant):
    devices = cards(2)
    weights = [torch.full((4, 4), card + 1.0, device=d, requires_grad=True) for card, d in enumerate(devices)]

    def layer(x):
        copies = fork(x, devices)
        return join([(copy @ weight).tanh() for copy, weight in zip(copies, weights, strict=True)], devices[0])

    def gradients(function):
        x = torch.full((2, 4), 0.1, device=devices[0], requires_grad=True)
        for weight in weights:
            weight.grad = None
        function(x).square().sum().backward()
        return [tensor.grad.cpu() for tensor in (x, *weights)]

    plain = gradients(layer)
    for _ in range(10):
        again = gradients(lambda x: checkpoint(layer, x, use_reentrant=reentrant))
        assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
