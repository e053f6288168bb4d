"""Sharded parameters on a CUDA GPU, both pieces on the one there is: the same bits, by CUDA's own kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter, pieces
from poolrt.runtime.sharded.tensor import ShardedTensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

GPU = "cuda:0"
SPLITS = {
    "up.weight": Split.from_shares(256, [3, 1], granule=8),
    "up.bias": Split.from_shares(256, [3, 1], granule=8),
    "down.weight": Split.from_shares(256, [3, 1], granule=8, dim=1),
}
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p),
    "AdamW one by one": lambda p: torch.optim.AdamW(p, foreach=False),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "AdamW capturable": lambda p: torch.optim.AdamW(p, capturable=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
}


class Middle(nn.Module):
    """Two linear layers, run whole or by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64, bias=False)
        self.by_piece = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_piece:
            return self.down(torch.tanh(self.up(x)))
        weights = zip(pieces(self.up.weight), pieces(self.up.bias), pieces(self.down.weight), strict=True)
        parts = [F.linear(torch.tanh(F.linear(x, up, bias)), down) for up, bias, down in weights]
        return sum(parts[1:], parts[0])


def twins() -> tuple[Middle, Middle]:
    ordinary = Middle().to(GPU)
    sharded = copy.deepcopy(ordinary)
    shard_parameters(sharded, SPLITS, [torch.device(GPU)] * 2)
    return sharded, ordinary


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_have_the_bits_of_steps_of_the_whole(name: str) -> None:
    sharded, ordinary = twins()
    x = torch.randn(32, 64, device=GPU)
    optimizers = {model: OPTIMIZERS[name](model.parameters()) for model in (sharded, ordinary)}
    for _ in range(3):
        for model, optimizer in optimizers.items():
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert isinstance(parameter, ShardedParameter)
        assert torch.equal(parameter.cpu(), expected.cpu())
    unshard_parameters(sharded)
    for model, optimizer in optimizers.items():
        model(x).pow(2).mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(sharded.parameters(), ordinary.parameters(), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_mixed_precision_by_piece(fused: bool) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = True
    x = torch.randn(32, 64, device=GPU)
    for model in (sharded, ordinary):
        scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        for spoil in (False, True):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = model(x).float().pow(2).mean()
            scaler.scale(loss).backward()
            if spoil:
                model.up.weight.grad[255].fill_(float("inf"))
            before = model.up.weight.cpu()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(model.up.weight.cpu(), before) == spoil
            assert bool(norm.isfinite()) != spoil
        assert scaler.get_scale() == 128.0
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert isinstance(parameter.grad, ShardedTensor)
        torch.testing.assert_close(parameter, expected, rtol=1e-2, atol=2e-3, check_device=False)


def test_nothing_is_held_twice() -> None:
    model = nn.Linear(2048, 2048, bias=False)  # 16 MiB, on the host
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    shard_parameters(model, {"weight": Split.from_shares(2048, [1, 1], dim=1)}, [torch.device(GPU)] * 2)
    assert torch.cuda.memory_allocated() - before == model.weight.nbytes
    assert torch.cuda.max_memory_allocated() - before <= 2 * model.weight.nbytes
    torch.cuda.reset_peak_memory_stats()
    assert torch.equal(model.state_dict()["weight"].cpu(), model.weight.cpu())
    assert torch.cuda.max_memory_allocated() - before <= 2 * model.weight.nbytes
