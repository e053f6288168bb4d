"""Seeds of stays: they depend on seed, card, visit and micro-batch, and on nothing else."""

from __future__ import annotations

import itertools

import torch

from poolrt.runtime.lanes.random_state import CardSeeds
from poolrt.runtime.lanes.turnstile import Ticket

Devices = tuple[torch.device, torch.device]


def draw(seeds: CardSeeds, devices: Devices, card: int, ticket: Ticket) -> float:
    seeds.seed(card, ticket)
    return torch.rand((), device=devices[card], dtype=torch.float64).item()


STAYS = [(card, Ticket(visit, lane)) for card, visit, lane in itertools.product((0, 1), (0, 1), range(4))]


def test_every_stay_has_a_seed_of_its_own(devices: Devices) -> None:
    seeds = CardSeeds(devices)
    assert len({draw(seeds, devices, *stay) for stay in STAYS}) == len(STAYS)


def test_the_order_of_stays_does_not_matter(devices: Devices) -> None:
    torch.manual_seed(5)
    seeds = CardSeeds(devices)
    one_way = {stay: draw(seeds, devices, *stay) for stay in STAYS}
    torch.manual_seed(5)
    seeds = CardSeeds(devices)
    other_way = {stay: draw(seeds, devices, *stay) for stay in reversed(STAYS)}
    assert one_way == other_way


def test_the_users_seed_decides_and_every_forward_draws_anew(devices: Devices) -> None:
    torch.manual_seed(5)
    first, second = (draw(CardSeeds(devices), devices, *STAYS[0]) for _ in range(2))
    torch.manual_seed(5)
    again = draw(CardSeeds(devices), devices, *STAYS[0])
    torch.manual_seed(6)
    other = draw(CardSeeds(devices), devices, *STAYS[0])
    assert first == again
    assert len({first, second, other}) == 3


def test_the_cards_generators_are_put_back(devices: Devices) -> None:
    torch.vcard.manual_seed_all(3)
    seeds = CardSeeds(devices)
    with seeds.restored():
        seeds.seed(0, Ticket(0, 0))
        torch.rand(4, device=devices[0])
        torch.rand(4, device=devices[1])
    after = [torch.rand((), device=device).item() for device in devices]
    torch.vcard.manual_seed_all(3)
    assert after == [torch.rand((), device=device).item() for device in devices]


def test_a_lane_on_the_host_puts_torchs_own_generator_back() -> None:
    devices = (torch.device("cpu"), torch.device("cpu"))
    seeds = CardSeeds(devices)
    state = torch.get_rng_state()
    with seeds.restored():
        seeds.seed(1, Ticket(0, 1))
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
