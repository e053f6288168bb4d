"""Keys of a split layer's cards.

lead's generator --state--> key --mix(key, 0)--> card 0's draws          afterwards the lead's is one draw further,
                                --mix(key, 1)--> card 1's draws          the others are where they were
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.regions.running.keyed import KeyedCards, on_keyed_cards
from poolrt.runtime.regions.running.parted import Parted, part_together
from poolrt.runtime.state.no_dropout import no_dropout
from poolrt.transfer.collectives.exchange import Exchange

Devices = list[torch.device]
Make = Callable[[int], Devices]


def draws(devices: Devices) -> list[list[float]]:
    """Eight numbers of each card, drawn under keys."""
    return on_keyed_cards(lambda card: torch.rand(8, device=devices[card]).tolist(), devices)[0]


def states(devices: Devices) -> list[Tensor]:
    return [torch.vcard.get_rng_state(device) for device in devices]


def same(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def test_the_leads_generator_decides_and_every_call_draws_anew(cards: Make):
    devices = cards(3)
    torch.manual_seed(5)
    first, second = draws(devices), draws(devices)
    torch.manual_seed(5)
    torch.rand(3, device=devices[1])
    assert draws(devices) == first, "whatever the other cards drew before"
    torch.manual_seed(6)
    assert first != draws(devices)
    assert first != second


def test_no_two_cards_calls_or_layers_drop_the_same_entries(cards: Make):
    devices = cards(4)
    torch.manual_seed(5)
    numbers = [tuple(row) for _ in range(20) for row in draws(devices)]
    assert len(set(numbers)) == 80
    lead = [tuple(torch.rand(8, device=devices[0]).tolist()) for _ in range(20)]
    assert not set(lead) & set(numbers), "nor what the lead card drops between the layers"


def test_generators_are_left_where_one_draw_leaves_them(cards: Make):
    devices = cards(3)
    torch.manual_seed(5)
    before = states(devices)
    on_keyed_cards(lambda card: torch.rand(card * 1000, device=devices[card]), devices)
    after = states(devices)
    assert same(before, after) == [False, True, True]
    torch.manual_seed(5)
    on_keyed_cards(lambda card: torch.randn(7, device=devices[card]), devices)
    assert same(after, states(devices)) == [True] * 3, "whatever the cards drew"


def test_cards_that_draw_nothing_leave_them_too(cards: Make):
    devices = cards(2)
    before = states(devices)
    assert on_keyed_cards(lambda card: card, devices) == ([0, 1], False)
    assert same(before, states(devices)) == [True, True]


def test_an_error_leaves_them_where_they_were(cards: Make):
    devices = cards(2)
    before = states(devices)

    def fail(card: int) -> None:
        torch.rand(3, device=devices[card])
        raise ValueError(card)

    with pytest.raises(ValueError, match="0"):
        on_keyed_cards(fail, devices)
    assert same(before, states(devices)) == [True, True]


def test_cards_that_share_a_generator_draw_each_their_own(cards: Make):
    """Logical cards of one device."""
    shared = cards(1) * 3
    torch.manual_seed(5)
    first = draws(shared)
    assert len({tuple(row) for row in first}) == 3
    torch.manual_seed(5)
    assert draws(shared) == first


# ---- layers


class Layer(nn.Module):
    """Drops what it is told to, in the way it is told."""

    def __init__(self, drop: Callable[[Layer, Tensor], Tensor], rate: float = 0.5) -> None:
        super().__init__()
        self.inner, self.rate_to_drop, self.chance = nn.Dropout(rate), rate, rate
        self._drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return self._drop(self, x)


WAYS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "module": lambda layer, x: layer.inner(x),
    "rate": lambda layer, x: F.dropout(x, layer.rate_to_drop, layer.training),
    "nameless": lambda layer, x: F.dropout(x, layer.chance, layer.training),
    "noise": lambda layer, x: x + torch.rand_like(x) if layer.training else x,
    "always": lambda layer, x: F.dropout(x, layer.chance),
}


def by_way(name: str) -> Layer:
    """A layer with nothing but what this way needs."""
    layer = Layer(WAYS[name])
    if name != "module":
        layer.inner.p = 0.0
    if name != "rate":
        del layer.rate_to_drop
    return layer


def run(keyed: KeyedCards, layer: nn.Module, devices: Devices) -> list[list[float]]:
    return keyed.run(lambda card: layer(torch.ones(32, device=devices[card])).tolist())


@pytest.mark.parametrize("way", WAYS)
def test_whatever_draws_in_training_is_keyed(way: str, cards: Make):
    devices, layer = cards(2), by_way(way)
    keyed = KeyedCards(layer, devices)
    for _ in range(2):  # the first call is watched, the second one is known to draw
        torch.manual_seed(5)
        first = run(keyed, layer, devices)
        torch.manual_seed(5)
        torch.rand(1, device=devices[1])
        assert run(keyed, layer, devices) == first
        assert first[0] != first[1]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_drawn_in_evaluation(way: str, cards: Make):
    devices, layer = cards(2), by_way(way).eval()
    keyed = KeyedCards(layer, devices)
    before = states(devices)
    for _ in range(2):
        run(keyed, layer, devices)
    assert same(before, states(devices)) == [way != "always", True]


@pytest.mark.parametrize("way", ["module", "rate", "nameless"])
def test_a_first_call_without_dropout_draws_nothing_and_does_not_decide(way: str, cards: Make):
    devices, layer = cards(2), by_way(way)
    keyed = KeyedCards(layer, devices)
    before = states(devices)
    with no_dropout(layer):
        assert run(keyed, layer, devices) == [[1.0] * 32] * 2
    assert same(before, states(devices)) == [True, True]
    torch.manual_seed(5)
    first = run(keyed, layer, devices)
    torch.manual_seed(5)
    torch.rand(1, device=devices[1])
    assert run(keyed, layer, devices) == first


def test_a_dropout_that_runs_on_the_lead_card_alone_costs_no_key(cards: Make):
    devices, layer = cards(2), by_way("module")
    keyed = KeyedCards(layer, devices, besides="inner")
    before = states(devices)
    for _ in range(2):
        keyed.run(lambda card: torch.ones(1, device=devices[card]))
    assert same(before, states(devices)) == [True, True]


def test_a_dropout_of_a_tensor_in_parts_is_keyed(cards: Make):
    devices = cards(2)

    def dropped() -> list[list[float]]:
        x = part_together([torch.ones(4, 16, device=device) for device in devices], devices[0])
        y = F.dropout(x, 0.5)
        assert type(y) is Parted
        return [part.tolist() for part in y.parts or ()]

    torch.manual_seed(5)
    first = dropped()
    torch.manual_seed(5)
    torch.rand(1, device=devices[1])
    assert dropped() == first
    assert first[0] != first[1]
    before = states(devices)
    F.dropout(part_together([torch.ones(2, device=device) for device in devices], devices[0]), 0.5, training=False)
    assert same(before, states(devices)) == [True, True]


def test_half_of_the_entries_stay_on_every_card(cards: Make):
    devices = cards(2)
    x = torch.ones(200, 200, device=devices[0])
    with Exchange(devices) as exchange:
        copies = exchange.fork(x)
        exchange.land_all()
        parts, drawn = on_keyed_cards(lambda card: F.dropout(copies[card], 0.5), devices)
        assert drawn
        total = exchange.join(parts)
    shares = [(total == value).float().mean().item() for value in (0.0, 2.0, 4.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02), "as two independent masks do"
