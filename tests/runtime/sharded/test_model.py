"""Splitting a model's parameters and undoing it: the same objects and bits, and never more on a card than its share."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.errors import ConfigurationError, ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter, cut_off_pieces, pieces
from poolrt.runtime.sharded.sharding import CHUNK_NBYTES

Devices = tuple[torch.device, ...]
Twins = Callable[[], tuple[nn.Module, nn.Module]]
MIB = 1 << 20


def used(devices: Devices) -> list[int]:
    return [torch.vcard.memory_allocated(device) for device in devices]


def peaks(devices: Devices) -> list[int]:
    return [torch.vcard.max_memory_allocated(device) for device in devices]


def reset_peaks(devices: Devices) -> None:
    for device in devices:
        torch.vcard.reset_peak_memory_stats(device)


@pytest.mark.parametrize("start", ["cpu", "vcard:0", "vcard:2"])
def test_undoing_is_the_exact_inverse(
    start: str, make_model: Callable[[], nn.Module], splits: dict[str, Split], devices: Devices, tokens: Tensor
) -> None:
    model = make_model().to(start)
    model.up.weight.requires_grad_(False)
    model(tokens).sum().backward()
    objects = dict(model.named_parameters())
    values = {name: parameter.detach().cpu() for name, parameter in objects.items()}
    gradients = {name: parameter.grad.cpu() for name, parameter in objects.items() if parameter.grad is not None}
    shard_parameters(model, splits, devices[:2])
    assert model.head.weight is model.embed.weight
    for name, parameter in objects.items():
        assert torch.equal(parameter.cpu(), values[name])
        assert isinstance(parameter, ShardedParameter) == (name in splits)
    unshard_parameters(model)
    assert model.head.weight is model.embed.weight
    for name, parameter in model.named_parameters():
        assert parameter is objects[name]
        assert type(parameter) is nn.Parameter
        assert parameter.device == torch.device(start)
        assert parameter.requires_grad == (name != "up.weight")
        assert torch.equal(parameter.cpu(), values[name])
        assert (parameter.grad is None) == (name not in gradients)
        if name in gradients:
            assert parameter.grad.device == torch.device(start)
            assert torch.equal(parameter.grad.cpu(), gradients[name])


def test_the_order_of_strides_is_kept(devices: Devices) -> None:
    model = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    strides = model.weight.stride()
    shard_parameters(model, {"weight": Split.from_counts((2, 4))}, devices[:2])
    assert model.weight.stride() == strides
    assert all(piece.is_contiguous(memory_format=torch.channels_last) for piece in model.weight.pieces)
    unshard_parameters(model)
    assert model.weight.stride() == strides


def test_three_cards_one_of_which_gets_nothing(devices: Devices) -> None:
    model = nn.Linear(4, 6)
    before = model.weight.detach().clone()
    shard_parameters(model, {"weight": Split(dim=0, pieces=(((0, 2),), (), ((2, 6),)))}, devices)
    assert [tuple(piece.shape) for piece in model.weight.pieces] == [(2, 4), (0, 4), (4, 4)]
    model.weight.pow(2).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.25).step()
    torch.testing.assert_close(model.weight.cpu(), before / 2)
    assert model.weight.max().item() == model.weight.cpu().max().item()


# ---- memory


@pytest.mark.parametrize("dim", [0, 1])
def test_from_the_host_each_card_gets_its_piece_and_no_more(dim: int, devices: Devices) -> None:
    """A layer of 96 MiB goes to cards of 64: a card never holds more than its piece and a copy of one chunk."""
    model = nn.Linear(6144, 4096, bias=False)  # 96 MiB
    before = used(devices)
    reset_peaks(devices)
    shard_parameters(model, {"weight": Split.from_shares(model.weight.shape[dim], [1, 1, 2], dim=dim)}, devices)
    pieces_mib = [24, 24, 48]
    assert [(now - then) // MIB for now, then in zip(used(devices), before, strict=True)] == pieces_mib
    for peak, then, piece in zip(peaks(devices), before, pieces_mib, strict=True):
        assert peak - then <= piece * MIB + CHUNK_NBYTES
    reset_peaks(devices)
    whole = model.state_dict()["weight"].cpu()
    assert whole.shape == (4096, 6144)
    for peak, then, piece in zip(peaks(devices), before, pieces_mib, strict=True):
        assert peak - then <= piece * MIB + CHUNK_NBYTES


def test_from_a_card_that_holds_the_whole(devices: Devices) -> None:
    """It needs room for its own piece beside the whole, which it then gives back; one parameter after another."""
    model = nn.Sequential(*(nn.Linear(1024, 2048, bias=False, device=devices[0]) for _ in range(4)))  # 8 MiB each
    before = used(devices)
    reset_peaks(devices)
    split = Split.from_shares(2048, [1, 1])
    shard_parameters(model, {name: split for name, _ in model.named_parameters()}, devices[:2])
    assert peaks(devices)[0] - before[0] <= 4 * MIB
    assert used(devices)[0] - before[0] == -16 * MIB
    assert used(devices)[1] - before[1] == 16 * MIB


def test_a_card_without_room_leaves_all_as_it_was(devices: Devices) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(3)))  # 4 MiB each
    values = [parameter.detach().clone() for parameter in model.parameters()]
    before = used(devices)
    torch.vcard.set_capacity(1, before[1] + 5 * MIB)
    split = Split.from_shares(1024, [1, 1])
    try:
        with pytest.raises(torch.OutOfMemoryError, match="vcard:1"):
            shard_parameters(model, {name: split for name, _ in model.named_parameters()}, devices[:2])
    finally:
        torch.vcard.set_capacity(1, 64 * MIB)
    assert used(devices) == before
    for parameter, value in zip(model.parameters(), values, strict=True):
        assert type(parameter) is nn.Parameter
        assert torch.equal(parameter, value)


def test_a_layer_larger_than_a_card_trains_on_two(devices: Devices) -> None:
    """Weights, gradients and AdamW's two states of 24 MiB each are one and a half cards of 64."""
    ordinary = nn.Linear(3072, 2048, bias=False)
    model = nn.Linear(3072, 2048, bias=False)
    model.load_state_dict(ordinary.state_dict())
    shard_parameters(model, {"weight": Split.from_shares(2048, [1, 1])}, devices[:2])
    x = torch.randn(4, 3072)
    reset_peaks(devices)
    optimizers = [torch.optim.AdamW(m.parameters(), fused=True) for m in (model, ordinary)]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        outputs = [F.linear(x.to(piece.device), piece).cpu() for piece in pieces(model.weight)]
        torch.cat(outputs, dim=1).pow(2).mean().backward()
        ordinary(x).pow(2).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(model.weight.cpu(), ordinary.weight)
    assert all(48 * MIB <= peak <= 52 * MIB for peak in peaks(devices)[:2])


def test_without_room_for_the_whole_it_stays_split(devices: Devices) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False, device=devices[0]) for _ in range(3)))  # 4 MiB each
    values = [parameter.detach().cpu() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    split = Split.from_shares(1024, [1, 1])
    shard_parameters(model, {name: split for name, _ in model.named_parameters()}, devices[:2])
    before = used(devices)
    torch.vcard.set_capacity(0, before[0] + 7 * MIB)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="vcard:0"):
            unshard_parameters(model)
    finally:
        torch.vcard.set_capacity(0, 64 * MIB)
    assert used(devices) == before
    for parameter, value in zip(model.parameters(), values, strict=True):
        assert isinstance(parameter, ShardedParameter)
        assert parameter.origin == devices[0]
        parameter.grad = torch.ones_like(parameter)
        assert torch.equal(parameter.cpu(), value)
    optimizer.step()
    unshard_parameters(model)
    assert torch.equal(model[0].weight.cpu(), values[0] - 1)
    assert optimizer.state[model[0].weight]["momentum_buffer"].device == devices[0]


# ---- what is refused


def refuse(error: type[Exception], match: str, model: nn.Module, splits: dict[str, Split], devices: Devices) -> None:
    with pytest.raises(error, match=match):
        shard_parameters(model, splits, devices)
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_what_does_not_fit_is_refused_by_name_before_anything_moves(devices: Devices) -> None:
    model = nn.Linear(4, 6)
    good, two = Split.from_counts((3, 3)), devices[:2]
    refuse(ConfigurationError, "no parameter 'wieght'", model, {"weight": good, "wieght": good}, two)
    refuse(ConfigurationError, "'bias'.*shape", model, {"weight": good, "bias": Split.from_counts((3, 2))}, two)
    refuse(ConfigurationError, "'bias'.*dimension 1", model, {"bias": Split.from_counts((3, 3), dim=1)}, two)
    refuse(ConfigurationError, "'bias'.*2 cards", model, {"bias": good}, devices)
    refuse(ModelError, "meta", nn.Linear(4, 6, device="meta"), {"weight": good}, two)


def test_different_splits_for_names_of_one_parameter_are_refused(
    make_model: Callable[[], nn.Module], devices: Devices
) -> None:
    splits = {"embed.weight": Split.from_counts((6, 6)), "head.weight": Split.from_counts((5, 7))}
    refuse(ConfigurationError, "one parameter", make_model(), splits, devices[:2])
    model = make_model()
    shard_parameters(model, dict.fromkeys(splits, Split.from_counts((6, 6))), devices[:2])
    assert model.head.weight is model.embed.weight


def test_what_still_holds_a_parameter_is_named(devices: Devices) -> None:
    splits, two = {"weight": Split.from_counts((3, 3))}, devices[:2]
    model = nn.Linear(4, 6)
    loss = model(torch.ones(1, 4, requires_grad=True)).sum()  # saves the weight
    refuse(ModelError, "'weight'.*backward", model, splits, two)
    loss.backward()
    del loss
    observers = weakref.WeakSet([model.weight])
    refuse(ModelError, "'weight'.*weak references", model, splits, two)
    observers.clear()
    shard_parameters(model, splits, two)
    with pytest.raises(ModelError, match="split already"):
        shard_parameters(model, splits, two)
    loss = model.weight.pow(2).sum()
    with pytest.raises(ModelError, match="backward"):
        unshard_parameters(model)
    loss.backward()
    del loss
    unshard_parameters(model)


@pytest.mark.parametrize("cut", [False, True])
def test_pieces_left_over_are_empty(cut: bool, devices: Devices) -> None:
    """A region that still holds them cannot go on with the values of before, and keeps no memory."""
    model = nn.Linear(4, 6, bias=False)
    before = used(devices)
    shard_parameters(model, {"weight": Split.from_counts((3, 3))}, devices[:2])
    kept = pieces(model.weight)
    cut_off_pieces(model.weight, cut)
    outputs = [F.linear(torch.ones(1, 4, device=piece.device), piece) for piece in kept]
    (outputs[0] + outputs[1].to(devices[0])).sum().backward()
    del outputs
    model.weight.grad = None
    unshard_parameters(model)
    assert used(devices) == before
    with pytest.raises(RuntimeError):
        F.linear(torch.ones(1, 4, device=devices[0]), kept[0])


@pytest.mark.parametrize("move", [lambda m: m.cpu(), lambda m: m.to("vcard:1"), lambda m: m.to("cpu", torch.float64)])
def test_a_model_that_is_split_is_not_moved(move: Callable[[nn.Module], nn.Module], devices: Devices) -> None:
    model = nn.Linear(4, 6, bias=False)
    shard_parameters(model, {"weight": Split.from_counts((3, 3))}, devices[:2])
    before = model.weight.pieces
    with pytest.raises(ModelError, match=r"vcard:0, vcard:1.*state_dict"):
        move(model)
    assert all(new is old for new, old in zip(model.weight.pieces, before, strict=True))
    assert model.to("vcard:0") is model  # where it is


@pytest.mark.parametrize("setting", ["swap_module_params_on_conversion", "overwrite_module_params_on_conversion"])
def test_parameters_are_not_exchanged_behind_the_pieces(
    setting: str, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(4, 6, bias=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    shard_parameters(model, {"weight": Split.from_counts((3, 3))}, devices[:2])
    weight = model.weight
    monkeypatch.setattr(torch.__future__, f"_{setting}", True)
    with pytest.raises(ModelError, match="before it is split"):
        model.double()
    if setting.startswith("swap"):
        with pytest.raises(RuntimeError, match="not exchanged"):
            model.load_state_dict(state)
    assert model.weight is weight
    assert isinstance(weight, ShardedParameter)
    assert weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_is_split_takes_another_type(dtype: torch.dtype, devices: Devices) -> None:
    model, ordinary = nn.Linear(4, 6), nn.Linear(4, 6, device=devices[0])
    model.load_state_dict(ordinary.state_dict())
    splits = {"weight": Split.from_counts((3, 3)), "bias": Split.from_counts((2, 4))}
    shard_parameters(model, splits, devices[:2])
    weight, optimizer = model.weight, torch.optim.SGD(model.parameters(), lr=0.1)
    for module in (model, ordinary):
        module.weight.sum().backward()
        module.to(dtype)
    assert model.weight is weight
    assert weight.dtype == weight.grad.dtype == dtype
    assert torch.equal(weight.cpu(), ordinary.weight.cpu())
    optimizer.step()
    assert torch.equal(weight.cpu(), (ordinary.weight - 0.1 * ordinary.weight.grad).cpu())
