"""Links that take their time: copies go on beside other work, and nothing is read before it is there.

    card 0   [a] ------------.            skip: from card 0 to card 2, by way of card 1
    card 1        [b] -----.  \\
    card 2              [c + skip]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.virtual_cards.links import clear_links, set_link

WIDTH, ROWS = 64, 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * mask + skip.sin()


class Model(nn.Module):
    """The first block's output is read by every later one, and the last returns to where labels would be."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = skip = self.first(x)
        for block in self.blocks:
            x = block(x, skip, mask)
        return x + skip


@pytest.fixture(autouse=True)
def no_models_left() -> Iterator[None]:
    yield
    clear_links()


def gradients(
    cards: int, speeds: dict[tuple[int, int], float], *, train: bool = True, paced: bool = False
) -> list[Tensor]:
    """Outputs and gradients of two steps on cards whose links have these speeds."""
    topology = poolrt.virtual(cards=cards, memory="64MiB", link="nvlink3x4", paced=paced)
    torch.manual_seed(1)
    batch = torch.randn(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
    model = poolrt.shard(Model().double().float(), topology=topology, sample=batch, micro_batches=4)
    torch.vcard.reset_hazards()
    for link, bytes_per_s in speeds.items():
        set_link(*link, bytes_per_s=bytes_per_s, latency_s=2e-4)
    found = []
    for _ in range(2):
        if not train:
            with torch.no_grad():
                found.append(model(*batch))
            continue
        output = model(*batch)
        output.square().mean().backward()
        found.append(output.detach())
    clear_links()
    for card in range(cards):
        torch.vcard.synchronize(card)
    assert torch.vcard.hazards() == []
    return [*found, *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]


def links(cards: int, up: float, down: float) -> dict[tuple[int, int], float]:
    return {(a, b): up if a < b else down for a in range(cards) for b in range(cards) if a != b}


@pytest.mark.parametrize("train", [True, False], ids=["training", "no gradients"])
@pytest.mark.parametrize(("up", "down"), [(2e6, 50e6), (50e6, 2e6)], ids=["slow forward", "slow backward"])
@pytest.mark.parametrize("cards", [2, 3])
def test_slow_links_change_no_bit(cards: int, up: float, down: float, train: bool) -> None:
    expected = gradients(cards, {}, train=train)
    found = gradients(cards, links(cards, up, down), train=train)
    assert len(found) == len(expected) == (2 + 12 if train else 2)
    for ours, right in zip(found, expected, strict=True):
        assert torch.equal(ours, right)


def test_paced_cards_train_in_the_same_bits() -> None:
    expected, found = gradients(2, {}), gradients(2, {}, paced=True)
    assert all(torch.equal(ours, right) for ours, right in zip(found, expected, strict=True))


def test_a_card_without_room_for_what_is_sent_to_it_leaves_nothing_under_way() -> None:
    topology = poolrt.virtual(cards=2, memory="64MiB")
    batch = torch.randn(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
    model = poolrt.shard(Model(), topology=topology, sample=batch, micro_batches=4)
    expected = model(*batch).detach()
    used = [torch.vcard.memory_allocated(card) for card in (0, 1)]
    torch.vcard.reset_hazards()
    for link in ((0, 1), (1, 0)):
        set_link(*link, bytes_per_s=2e6)
    for room in (0, 1024, 4096):
        torch.vcard.set_capacity(1, used[1] + room)
        with pytest.raises(poolrt.OutOfMemoryError):
            model(*batch)
        assert [torch.vcard.memory_allocated(card) for card in (0, 1)] == used
    torch.vcard.set_capacity(1, 64 << 20)
    assert torch.equal(model(*batch), expected)
    assert torch.vcard.hazards() == []
