"""Layers that sleep: they take time without using a core, so only what the schedule itself costs shows.

ideal with p cards and m micro-batches, forward or backward alone or one after the other:

card 0   0 1 2 3          m slots of work, p - 1 slots of waiting: m * p / (m + p - 1) times
card 1     0 1 2 3        as fast as the same layers one after another
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

FORWARD_S_PER_ROW = 0.002
BACKWARD_S_PER_ROW = 0.004
WIDTH = 8


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        time.sleep(FORWARD_S_PER_ROW * len(rows))
        return rows * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(BACKWARD_S_PER_ROW * len(gradient))
        return gradient


class SleepingLayer(nn.Module):
    """A small linear layer that takes a fixed time per row in forward and twice that in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of shape (batch, WIDTH) to the same shape."""
        return _Sleep.apply(self.linear(rows))


def sleeping_model(layers: int = 8) -> nn.Sequential:
    """`layers` sleeping layers in a row."""
    return nn.Sequential(*(SleepingLayer() for _ in range(layers)))


def ideal_speedup(cards: int, micro_batches: int) -> float:
    """How many times faster a pipeline without any cost of its own is than one card after another (GPipe, 2019)."""
    return micro_batches * cards / (micro_batches + cards - 1)
