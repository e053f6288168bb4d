"""The copies of one step, counted by the lanes and by the links themselves.

forward    card 0 -> 1   once per micro-batch: hidden state, mask, rotary table
backward   card 1 -> 0   once per micro-batch: gradient of the hidden state
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.runtime.pooled import pooled_of
from poolrt.virtual_cards.links import carried, clear_links, set_link

WIDTH, ROWS, LAYERS = 16, 8, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, rotary: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x) * rotary) * mask


class Model(nn.Module):
    """Every layer reads the mask and the rotary table that glue code has made once."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rotary = torch.arange(WIDTH, device=x.device).cos()
        for block in self.blocks:
            x = block(x, mask, rotary)
        return x


@pytest.mark.parametrize("slow_links", [False, True], ids=["copies are immediate", "copies are on their way"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_masks_and_tables_cross_once_per_micro_batch(micro_batches: int, slow_links: bool) -> None:
    topology = poolrt.virtual(cards=2, memory="64MiB")
    batch = (torch.randn(ROWS, WIDTH, device="vcard:0"), torch.ones(ROWS, WIDTH, device="vcard:0"))
    model = poolrt.shard(Model(), topology=topology, sample=batch, micro_batches=micro_batches)
    if slow_links:
        for link in ((0, 1), (1, 0)):
            set_link(*link, bytes_per_s=1e9, latency_s=1e-4)
    forward_before, backward_before = carried(0, 1), carried(1, 0)
    output = model(*batch)
    forward_after, between = carried(0, 1), carried(1, 0)
    output.sum().backward()
    backward_after = carried(1, 0)
    clear_links()
    hidden, table = ROWS * WIDTH * 4, WIDTH * 4
    assert forward_after[0] - forward_before[0] == 3 * micro_batches
    assert forward_after[1] - forward_before[1] == 2 * hidden + micro_batches * table
    gathered = (between[0] - backward_before[0], between[1] - backward_before[1])
    assert gathered == (micro_batches, hidden)  # the output's parts, to where the batch came from
    assert backward_after[0] - between[0] == micro_batches
    assert backward_after[1] - between[1] == hidden
    assert pooled_of(model).crossed == (4 * micro_batches, 3 * hidden + micro_batches * table)
    assert poolrt.report(model).measured_crossings == 4 * micro_batches
