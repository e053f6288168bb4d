"""A link that dies in mid-run: copies go through the host from then on, and training ends in the same bits.

step 1   forward  0 -> 1  0 -> 1  ...     backward  1 -> 0  1 -> 0  ...
step 2   forward  0 -> 1  X               from here on  0 -> host -> 1
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

import poolrt
from poolrt.transfer import routes
from poolrt.virtual_cards.links import carried, clear_faults, clear_links, is_up, set_fault, set_link

STEPS = 3
Link = tuple[int, int]


@pytest.fixture(autouse=True)
def sound_links() -> Iterator[None]:
    poolrt.virtual(cards=2, memory="64MiB")
    torch.vcard.reset_hazards()
    yield
    clear_faults()
    clear_links()
    assert torch.vcard.hazards() == []
    routes.current().forget("vcard")


def make_bert() -> BertForMaskedLM:
    torch.manual_seed(1)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=16, attn_implementation="eager",
        )
    )  # fmt: skip


class Training:
    """A BERT on two cards, three steps of AdamW with dropout."""

    def __init__(self, *, slow_links: bool) -> None:
        topology = poolrt.virtual(cards=2, memory="64MiB")
        tokens = torch.randint(60, (8, 12), generator=torch.Generator().manual_seed(2))
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
        self.model = poolrt.shard(make_bert(), topology=topology, sample=self.batch, micro_batches=4)
        if slow_links:  # copies are then on their way while lanes wait for their turn
            for link in ((0, 1), (1, 0)):
                set_link(*link, bytes_per_s=20e6, latency_s=1e-3)

    def run(self) -> dict[str, Tensor]:
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        for _ in range(STEPS):
            self.model(**self.batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.cpu() for name, value in self.model.state_dict().items()}


@functools.cache
def copies_of_a_run(slow_links: bool) -> tuple[dict[str, Tensor], dict[Link, int]]:
    """What an undisturbed run ends in, and how many copies its links carry."""
    training = Training(slow_links=slow_links)
    links: tuple[Link, Link] = ((0, 1), (1, 0))
    before = {link: carried(*link)[0] for link in links}
    parameters = training.run()
    return parameters, {link: carried(*link)[0] - before[link] for link in links}


def test_links_that_take_their_time_change_no_bit() -> None:
    immediate, copies = copies_of_a_run(slow_links=False)
    slow, copies_then = copies_of_a_run(slow_links=True)
    assert copies_then == copies
    assert all(torch.equal(slow[name], value) for name, value in immediate.items())


@pytest.mark.parametrize("slow_links", [False, True], ids=["copies are immediate", "copies are on their way"])
@pytest.mark.parametrize("link", [(0, 1), (1, 0)], ids=["in forward", "in backward"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_link_that_dies_changes_no_bit(
    link: Link, share: float, slow_links: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected, copies = copies_of_a_run(slow_links)
    training = Training(slow_links=slow_links)
    set_fault(*link, "dies", after_copies=int(share * copies[link]))
    to_host = carried(link[0], None)[1]
    with caplog.at_level(logging.WARNING, logger="poolrt"):
        found = training.run()
    assert not is_up(*link)
    assert is_up(link[1], link[0])
    assert carried(link[0], None)[1] > to_host
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert [f"vcard:{card}" in caplog.text for card in link] == [True, True]
    assert len(caplog.records) == 1


def test_both_directions_may_die() -> None:
    expected, copies = copies_of_a_run(slow_links=True)
    training = Training(slow_links=True)
    for link, count in copies.items():
        set_fault(*link, "dies", after_copies=count // 3)
    found = training.run()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("slow_links", [False, True], ids=["copies are immediate", "copies are on their way"])
def test_with_no_way_left_the_error_reaches_the_user_and_the_next_run_is_right(slow_links: bool) -> None:
    expected, _ = copies_of_a_run(slow_links)
    training = Training(slow_links=slow_links)
    set_fault(0, 1, "dies", after_copies=3)
    set_fault(0, None, "dies")
    with pytest.raises(torch.AcceleratorError, match="vcard:0 -> the host"):
        training.run()
    clear_faults()
    training.model.load_state_dict(make_bert().state_dict())
    training.model.zero_grad()
    found = training.run()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
