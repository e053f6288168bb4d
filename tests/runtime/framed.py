"""Small models with dropout whose layers run in checkpoint frames of every shape; and circumstances that are hard.

frame [ layer 0   layer 1 ]   frame [ layer 2   layer 3 ]      "2 layers"
frame [ frame [ layer 0 ] frame [ layer 1 ] ... ]              "nested"
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

WIDTH, RATE = 16, 0.1
Gradients = dict[str, Tensor]
Frames = Callable[[list[nn.Module], Tensor], Tensor]


def gradients(model: nn.Module, loss: Callable[[], Tensor], seed: int = 7) -> Gradients:
    """Of one step from this seed, on the host."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss().backward()
    return {name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None}


def differing(expected: Gradients, actual: Gradients) -> list[str]:
    """Names of the parameters whose gradients are not bit by bit the same."""
    assert expected.keys() == actual.keys()
    return [name for name in expected if not torch.equal(expected[name], actual[name])]


class Stumble(torch.autograd.Function):
    """Nothing but delay on one card, each time for another while: in forward, and in backward before what was kept."""

    late = -1
    """the card that is late; none unless a test says so"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        Stumble.delay(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Stumble.delay(gradient)
        _ = ctx.saved_tensors
        return gradient

    @staticmethod
    def delay(x: Tensor) -> None:
        if x.device.type == "vcard" and x.device.index == Stumble.late:
            time.sleep(time.perf_counter_ns() % 7 * 1e-4)


class Attention(nn.Module):
    """Attention whose code runs on every card, with a dropout of each card's own heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.drop = nn.Dropout(RATE)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (Stumble.apply(part(x).unflatten(-1, (-1, 4)).transpose(1, 2)) for part in (self.q, self.k, self.v))
        weights = self.drop((q @ k.transpose(-1, -2) / 2).softmax(-1))
        return self.out(Stumble.apply(weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A layer between a norm and a sum, as in every transformer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


def attention() -> nn.Module:
    return Block(Attention())


def plain(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def every(count: int, **options: Any) -> Frames:
    """Frames of so many layers in a row."""

    def run(layers: list[nn.Module], x: Tensor) -> Tensor:
        for first in range(0, len(layers), count):
            x = checkpoint(plain, layers[first : first + count], x, **options)
        return x

    return run


def nested(reentrant: bool, inside: bool) -> Frames:
    """A frame around all, and in it one around every layer; each of its kind."""
    return lambda layers, x: checkpoint(every(1, use_reentrant=inside), layers, x, use_reentrant=reentrant)


def to_the_end(layers: list[nn.Module], x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return every(2, use_reentrant=False)(layers, x)


def sequential(reentrant: bool) -> Frames:
    return lambda layers, x: checkpoint_sequential(layers, 2, x, use_reentrant=reentrant)


FRAMES: dict[str, Frames] = {
    "1 layer": every(1, use_reentrant=False),
    "2 layers": every(2, use_reentrant=False),
    "4 layers": every(4, use_reentrant=False),
    "1 layer, reentrant": every(1, use_reentrant=True),
    "2 layers, reentrant": every(2, use_reentrant=True),
    "4 layers, reentrant": every(4, use_reentrant=True),
    "nested": nested(False, False),
    "nested, reentrant outside": nested(True, False),
    "nested, reentrant inside": nested(False, True),
    "nested, reentrant": nested(True, True),
    "sequential": sequential(False),
    "sequential, reentrant": sequential(True),
    "to the end": to_the_end,
    "without a check": every(2, use_reentrant=False, determinism_check="none"),
}


class Stack(nn.Module):
    """Four layers behind a linear one, as deep in frames as a test asks for."""

    def __init__(self, make: Callable[[], nn.Module], layers: int = 4) -> None:
        super().__init__()
        self.entry = nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList(make() for _ in range(layers))
        self.frames = plain

    def forward(self, x: Tensor) -> Tensor:
        return self.frames(list(self.layers), self.entry(x)).square().mean()


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 4, 32, dropout=RATE, batch_first=True)


@contextmanager
def framed(model: nn.Module, frames: Frames) -> Iterator[None]:
    model.frames = frames
    try:
        yield
    finally:
        model.frames = plain


class Halves(nn.Module):
    """Two linear layers and a dropout between them; a frame, if any, holds the first and the dropout only."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Dropout(RATE)
        self.options: dict[str, bool] | None = None
        self.seen: list[tuple[type, torch.device]] = []

    def widened(self, x: Tensor) -> Tensor:
        wide = self.drop(torch.tanh(self.up(x)))
        self.seen.append((type(wide), wide.device))
        return wide

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.widened(x) if self.options is None else checkpoint(self.widened, x, **self.options))


class Whole(Halves):
    """The same with norm and sum, so that it cannot run on every card: its linear layers are split one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(self.norm(x))


def inside() -> nn.Module:
    return Block(Halves())


@contextmanager
def hard_times(late: int = -1) -> Iterator[None]:
    """Threads change places all the time, one works for nothing, and card `late`, if any, is so now and then."""
    interval, over = sys.getswitchinterval(), threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(500))
            time.sleep(1e-4)  # or on a busy machine everybody waits for it

    burner = threading.Thread(target=burn)
    burner.start()
    sys.setswitchinterval(1e-4)
    Stumble.late = late
    try:
        yield
    finally:
        Stumble.late = -1
        sys.setswitchinterval(interval)
        over.set()
        burner.join()
