"""Logical cards work in streams of their own, and whoever reads what another stream wrote waits for it.

stream of the caller   [batch] o .................................. o [loss]
stream of card 0                '-> [layers of card 0] o            ^
stream of card 1                                        '-> [layers] o

A late layer ends with a copy from the host that its stream carries out later, over a link that takes its time: who does
not wait reads zeros.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import poolrt
from poolrt.runtime.placing.caps import Caps
from poolrt.virtual_cards import links

WIDTH, ROWS = 64, 16
DEVICE = "vcard:0"


@pytest.fixture
def shares() -> Iterator[poolrt.Topology]:
    poolrt.virtual(cards=1, memory="256MiB")
    yield poolrt.logical(DEVICE, cards=2, memory="64MiB")
    links.clear_links()
    gc.collect()


def slow_down() -> None:
    links.set_link(None, 0, bytes_per_s=1e6, latency_s=0.005)


def late(values: Tensor) -> Tensor:
    """A copy of `values` that is zero until the current stream has come so far."""
    if values.device.type == "cpu":
        return values.clone()
    kept, copied = values.cpu(), torch.zeros_like(values)
    return copied.copy_(kept, non_blocking=True)


class _LateForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return late(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _LateBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return late(gradients[0])


class Late(nn.Module):
    """A linear layer whose output, or whose input's gradient, comes late."""

    def __init__(self, function: type[torch.autograd.Function] | None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.function = function
        self.streams: set[Any] = set()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            self.streams.add(torch.vcard.current_stream(x.device))  # type: ignore[attr-defined]
        if self.function is _LateBackward:
            x = self.function.apply(x)
        x = self.linear(x)
        return self.function.apply(x) if self.function is _LateForward else x


def model_of(*functions: type[torch.autograd.Function] | None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Late(function) for function in functions))


def sharded(model: nn.Module, topology: poolrt.Topology) -> nn.Module:
    """With its first half on card 0 and the other on card 1."""
    return poolrt.shard(copy.deepcopy(model), topology=topology, sample=batch(), micro_batches=2, spill="never")


def batch() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, then gradients, read by the caller's stream."""
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [t.detach().cpu() for t in (output, *(p.grad for p in model.parameters()))]


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_each_card_has_its_stream_and_the_caller_another(shares: poolrt.Topology) -> None:
    pooled = sharded(model_of(None, None, None, None), shares)
    for layer in pooled:
        layer.streams.clear()
    step(pooled, batch())
    assert len(pooled[0].streams) == len(pooled[3].streams) == 1
    assert pooled[0].streams != pooled[3].streams
    outside = torch.vcard.current_stream(DEVICE)  # type: ignore[attr-defined]
    assert outside == torch.vcard.default_stream(DEVICE)  # type: ignore[attr-defined]
    assert outside not in pooled[0].streams | pooled[3].streams


def test_no_memory_is_used_anew_while_another_stream_still_reads_it(shares: poolrt.Topology) -> None:
    plain = model_of(None, None, None, None)
    pooled = sharded(plain, shares)
    optimizer = torch.optim.AdamW(pooled.parameters(), lr=1e-3)
    torch.vcard.reset_hazards()  # type: ignore[attr-defined]
    for _ in range(3):
        pooled(batch()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.vcard.hazards() == []  # type: ignore[attr-defined]


LATE = {
    "at the border, forward": (None, _LateForward, None, None),
    "at the end, forward": (None, None, None, _LateForward),
    "at the border, backward": (None, None, _LateBackward, None),
    "everywhere": (_LateForward, _LateForward, _LateBackward, _LateForward),
}


@pytest.mark.parametrize("where", LATE)
def test_who_reads_waits(shares: poolrt.Topology, where: str) -> None:
    plain = model_of(*LATE[where])
    expected, pooled = step(plain, batch()), sharded(plain, shares)
    slow_down()
    assert close(step(pooled, batch()), expected)


WAITS = {"of one card for the other": "at the border, forward", "of the caller": "at the end, forward"}
"""in backward autograd's engine waits as well: it knows the stream of every node"""


@pytest.mark.parametrize("wait", WAITS)
def test_without_the_wait_it_would_be_noticed(
    shares: poolrt.Topology, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    plain = model_of(*LATE[WAITS[wait]])
    expected, pooled = step(plain, batch()), sharded(plain, shares)
    if wait == "of the caller":
        monkeypatch.setattr(Caps, "end", lambda self: None)
        monkeypatch.setattr(Caps, "mark", lambda self, card: torch.Event(device=DEVICE))
    else:
        work = Caps.work

        @contextmanager
        def at_once(self: Caps, card: int, after: Any) -> Iterator[None]:
            with work(self, card, ()):
                yield

        monkeypatch.setattr(Caps, "work", at_once)
    slow_down()
    assert not close(step(pooled, batch()), expected)


def test_what_the_caller_gave_its_own_stream_is_waited_for(shares: poolrt.Topology) -> None:
    plain = model_of(None, None, None, None)
    expected, pooled = step(plain, batch()), sharded(plain, shares)
    slow_down()
    mine = torch.Stream(device=DEVICE)
    with mine:
        x = torch.zeros(ROWS, WIDTH, device=DEVICE)
        x.copy_(batch(), non_blocking=True)
        assert close(step(pooled, x), expected)
