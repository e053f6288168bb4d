"""What training scripts do besides forward, backward and step, done to sharded parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.tensor import ShardedTensor

Twins = Callable[[], tuple[nn.Module, nn.Module]]


def backward(model: nn.Module, tokens: Tensor) -> None:
    model(tokens).logsumexp(-1).mean().backward()


def assert_close_parameters(sharded: nn.Module, ordinary: nn.Module) -> None:
    for name, parameter in ordinary.named_parameters():
        found = sharded.get_parameter(name)
        torch.testing.assert_close(found.cpu(), parameter.cpu(), rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("order", [2.0, 1.0, float("inf")])
def test_clipping_by_norm(order: float, foreach: bool | None, twins: Twins, tokens: Tensor) -> None:
    norms = []
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        backward(model, tokens)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3, norm_type=order, foreach=foreach).item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-14)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert isinstance(parameter.grad, ShardedTensor) == isinstance(parameter, ShardedParameter)
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad.cpu(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("foreach", [None, False, True])
def test_clipping_by_value(foreach: bool | None, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        backward(model, tokens)
        nn.utils.clip_grad_value_(model.parameters(), 1e-3, foreach=foreach)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert torch.equal(parameter.grad.cpu(), expected.grad.cpu())


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_scaler_unscales_and_skips(fused: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = (model.float() for model in twins())
    for model in (sharded, ordinary):
        scaler = torch.amp.GradScaler("vcard", init_scale=1024.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        for spoil in (False, True, False):
            optimizer.zero_grad()
            scaler.scale(model(tokens).logsumexp(-1).mean()).backward()
            if spoil:
                with torch.no_grad():
                    model.down.weight.grad[:, 14] = float("inf")  # on the second card only
            before = model.up.weight.cpu()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e6)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(model.up.weight.cpu(), before) == spoil
        assert scaler.get_scale() == 512.0
    for name, parameter in ordinary.named_parameters():
        torch.testing.assert_close(sharded.get_parameter(name).cpu(), parameter.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [False, True], ids=["whole", "by piece"])
def test_a_penalty_on_all_parameters(way: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = way
    for model in (sharded, ordinary):
        penalty = sum(p.pow(2).sum() + p.abs().mean() + p.norm() for p in model.parameters())
        (model(tokens).logsumexp(-1).mean() + 0.1 * penalty).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
                parameter.data.clamp_(-0.5, 0.5)
    assert_close_parameters(sharded, ordinary)


def test_averages_of_weights(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    averages = []
    for model in (sharded, ordinary):
        for decay in (None, 0.9):
            multi = None if decay is None else torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
            average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                backward(model, tokens)
                optimizer.step()
                average.update_parameters(model)
            averages.append(average.module)
    assert isinstance(averages[0].up.weight, ShardedParameter)
    assert_close_parameters(averages[0], averages[2])
    assert_close_parameters(averages[1], averages[3])


def test_parameters_as_one_vector_and_back(twins: Twins) -> None:
    sharded, ordinary = twins()
    vector = nn.utils.parameters_to_vector(sharded.parameters())
    assert torch.equal(vector, nn.utils.parameters_to_vector(ordinary.parameters()))
    for model in (sharded, ordinary):
        nn.utils.vector_to_parameters(2 * vector.detach(), model.parameters())
    assert isinstance(sharded.up.weight, ShardedParameter)
    assert_close_parameters(sharded, ordinary)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", [False, True], ids=["whole", "by piece"])
def test_under_checkpoint(way: bool, reentrant: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded.by_piece = way
    hidden = torch.randn(4, 8, dtype=torch.float64)
    for model in (sharded, ordinary):
        entry = hidden.to(model.norm.weight.device).requires_grad_()
        middle = model.middle if model.by_piece else lambda x, m=model: m.down(torch.tanh(m.up(x)))
        # With threads of their own two cards may unpack one frame of torch's checkpoint at once: lanes and regions see
        # to that, plain use of pieces has the engine in one thread.
        with torch.autograd.set_multithreading_enabled(False):
            checkpoint(middle, entry, use_reentrant=reentrant).pow(2).sum().backward()
    for name in ("up.weight", "up.bias", "down.weight"):
        found, expected = sharded.get_parameter(name).grad, ordinary.get_parameter(name).grad
        torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", [False, True], ids=["whole", "by piece"])
def test_under_autocast(way: bool, twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = (model.float() for model in twins())
    sharded.by_piece = way
    for model in (sharded, ordinary):
        with torch.autocast("vcard", torch.bfloat16):
            backward(model, tokens)
    for parameter, expected in zip(sharded.parameters(), ordinary.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad.cpu(), rtol=0.05, atol=5e-3)


def test_no_gradients_in_inference(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for way in (False, True):
        sharded.by_piece = way
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(sharded(tokens), ordinary(tokens), rtol=1e-12, atol=1e-14)
    backward(sharded, tokens)  # pieces made in inference mode learn all the same
    assert isinstance(sharded.up.weight.grad, ShardedTensor)


def test_functional_call_with_other_values(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    other = {name: torch.randn_like(value) for name, value in ordinary.named_parameters()}
    found = torch.func.functional_call(sharded, other, (tokens,))
    assert torch.equal(found, torch.func.functional_call(ordinary, other, (tokens,)))
    own = {name: 2 * parameter for name, parameter in sharded.named_parameters()}
    torch.func.functional_call(sharded, own, (tokens,)).sum().backward()
    torch.func.functional_call(ordinary, {n: 2 * p for n, p in ordinary.named_parameters()}, (tokens,)).sum().backward()
    gradient = sharded.up.weight.grad
    torch.testing.assert_close(gradient.cpu(), ordinary.up.weight.grad.cpu(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrization_comes_before_the_split(
    how: Callable[[nn.Module], nn.Module], twins: Twins, devices: tuple[torch.device, ...], tokens: Tensor
) -> None:
    sharded, ordinary = twins()
    before = ordinary(tokens)
    with pytest.raises((ModelError, RuntimeError)):
        how(sharded.down)
    torch.testing.assert_close(sharded(tokens), before, rtol=1e-12, atol=1e-14)
    unshard_parameters(sharded)
    for model in (sharded, ordinary):
        torch.manual_seed(0)
        how(model.down)
    name = max((name for name, _ in sharded.down.named_parameters()), key=len)
    rows = sharded.down.get_parameter(name).shape[0]
    shard_parameters(sharded.down, {name: Split.from_shares(rows, [1, 1])}, devices[:2])
    for model in (sharded, ordinary):
        backward(model, tokens)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_close_parameters(sharded, ordinary)


def test_pruning_with_a_mask(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    for model in (sharded, ordinary):
        prune.l1_unstructured(model.up, "weight", amount=0.5)
        backward(model, tokens)
        prune.remove(model.up, "weight")
    assert_close_parameters(sharded, ordinary)


def test_copies_train_apart(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    target = copy.deepcopy(sharded).requires_grad_(False)
    optimizer = torch.optim.AdamW(sharded.parameters())
    backward(sharded, tokens)
    optimizer.step()
    assert_close_parameters(target, ordinary)
    for parameter, source in zip(target.parameters(), sharded.parameters(), strict=True):
        parameter.data.mul_(0.9).add_(source.data, alpha=0.1)
    expected = 0.9 * ordinary.up.weight.cpu() + 0.1 * sharded.up.weight.cpu()
    torch.testing.assert_close(target.up.weight.cpu(), expected, rtol=1e-12, atol=1e-14)
