"""What a run shows: arguments, who reads whose output, and where values go element by element."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.regions.finding.capture import capture, follow


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.GELU())
        self.head, self.gate, self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        x = x + self.head(self.body(x)) * scale
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return self.last(x.softmax(-1))


def test_calls_and_readers():
    model, x = Parts(), torch.randn(3, 4)
    captured = capture(model, lambda: model(x, scale=2.0))
    assert captured.calls[""][0][0] is x
    assert captured.calls[""][1] == {"scale": 2.0}
    assert list(captured.calls)[:3] == ["", "body", "body.0"]
    assert captured.readers == {"head": ["body.1", "body"]}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_values_are_followed_through_work_on_single_elements_only():
    """
    gate --silu--.
                  *--> down --softmax--> last          softmax is no work on single elements
    up ----------'
    """
    model, x = Parts(), torch.randn(3, 4)
    expected = model(x)
    linears = ["body.0", "head", "gate", "up", "down", "last"]
    found = follow(model, lambda: model(x), linears, 2)
    assert found == {"head": ("body.0",), "down": ("gate", "up")}
    assert torch.equal(model(x), expected)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_run_that_fails_leaves_nothing():
    model = Parts()

    def run() -> None:
        raise RuntimeError("no batch")

    for look in (lambda: capture(model, run), lambda: follow(model, run, ["head"], 2)):
        with pytest.raises(RuntimeError, match="no batch"):
            look()
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())
