"""Saved, loaded, copied and pickled, a sharded parameter is an ordinary one of full shape; loading keeps it sharded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime.sharded.model import shard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter, pieces
from poolrt.runtime.sharded.tensor import ShardedTensor

Devices = tuple[torch.device, ...]
Twins = Callable[[], tuple[nn.Module, nn.Module]]


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, map_location="cpu")


def assert_same_values(sharded: nn.Module, ordinary: nn.Module) -> None:
    for name, parameter in ordinary.named_parameters():
        assert torch.equal(sharded.get_parameter(name).cpu(), parameter.cpu()), name


# ---- state_dict


def test_state_dict_has_the_ordinary_keys_shapes_and_values(twins: Twins) -> None:
    sharded, ordinary = twins()
    found, expected = sharded.state_dict(), ordinary.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype, found[name].device) == (value.shape, value.dtype, value.device)
        assert not found[name].requires_grad
        assert torch.equal(found[name].cpu(), value.cpu())
    assert sharded.state_dict(keep_vars=True)["up.weight"] is sharded.up.weight


def test_a_state_dict_is_another_name_of_the_values(twins: Twins) -> None:
    """As ever: writing into it, the old way to load a part of a checkpoint, writes the model."""
    sharded, _ = twins()
    state = sharded.state_dict()
    state["up.weight"].copy_(torch.ones(16, 8))
    state["embed.weight"][3] = 7.0
    assert sharded.up.weight.cpu().unique().tolist() == [1.0]
    assert sharded.head.weight.cpu()[3].unique().tolist() == [7.0]
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr() != state["up.weight"].data_ptr()


def test_a_checkpoint_is_the_ordinary_one(twins: Twins) -> None:
    sharded, ordinary = twins()
    found, expected = saved_and_loaded(sharded.state_dict()), ordinary.state_dict()
    for name, value in expected.items():
        assert type(found[name]) is Tensor
        assert torch.equal(found[name], value.cpu())
    assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()  # saved once
    file = io.BytesIO()
    torch.save(expected, file)
    other = io.BytesIO()
    torch.save(sharded.state_dict(), other)
    assert len(other.getvalue()) <= len(file.getvalue()) + 512


def test_a_checkpoint_holds_the_values_of_its_moment(twins: Twins) -> None:
    sharded, _ = twins()
    first = saved_and_loaded(sharded.up.weight.detach())
    with torch.no_grad():
        sharded.up.weight.add_(1.0)
    second = saved_and_loaded(sharded.up.weight.detach())
    assert torch.equal(second, first + 1.0)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("source", ["host", "first card", "sharded"])
def test_loading_puts_the_values_into_the_pieces(assign: bool, strict: bool, source: str, twins: Twins) -> None:
    sharded, ordinary = twins()
    parameter, kept = sharded.up.weight, pieces(sharded.up.weight)
    with torch.no_grad():
        for expected in ordinary.parameters():
            expected.mul_(2.0)
    state = ordinary.state_dict()
    if source == "host":
        state = {name: value.cpu() for name, value in state.items()}
    elif source == "sharded":
        other, _ = twins()
        other.load_state_dict(state)
        state = other.state_dict()
    assert str(sharded.load_state_dict(state, strict=strict, assign=assign)) == "<All keys matched successfully>"
    assert_same_values(sharded, ordinary)
    assert sharded.up.weight is parameter
    assert sharded.head.weight is sharded.embed.weight
    assert all(torch.equal(piece, own) for piece, own in zip(kept, parameter.pieces, strict=True))
    assert parameter.requires_grad


def test_assigning_takes_the_type_of_what_is_loaded(twins: Twins) -> None:
    sharded, ordinary = twins()
    state = {name: value.cpu().float() for name, value in ordinary.state_dict().items()}
    sharded.load_state_dict(state)
    assert sharded.up.weight.dtype == torch.float64
    sharded.load_state_dict(state, assign=True)
    assert sharded.up.weight.dtype == torch.float32
    assert [piece.dtype for piece in sharded.up.weight.pieces] == [torch.float32] * 2
    assert state["up.weight"].device.type == "cpu"
    assert type(state["up.weight"]) is Tensor


@pytest.mark.parametrize("assign", [False, True])
def test_what_does_not_match_is_torchs_to_refuse(assign: bool, twins: Twins) -> None:
    sharded, ordinary = twins()
    state = ordinary.state_dict()
    before = sharded.up.weight.cpu()
    del state["down.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*down.weight"):
        sharded.load_state_dict(state, assign=assign)
    state["up.weight"] = torch.ones(3, 8)
    with pytest.raises(RuntimeError, match=r"size mismatch for up.weight"):
        sharded.load_state_dict(state, strict=False, assign=assign)
    assert torch.equal(sharded.up.weight.cpu(), before)


def test_an_ordinary_model_loads_a_sharded_ones_state(twins: Twins) -> None:
    sharded, ordinary = twins()
    with torch.no_grad():
        sharded.up.weight.zero_()
    ordinary.load_state_dict(sharded.state_dict())
    assert_same_values(sharded, ordinary)
    assert type(ordinary.up.weight) is nn.Parameter


# ---- copies and pickles


def test_a_deep_copy_is_sharded_likewise(twins: Twins, tokens: Tensor) -> None:
    sharded, ordinary = twins()
    sharded(tokens).sum().backward()
    copied = copy.deepcopy(sharded)
    assert isinstance(copied.up.weight, ShardedParameter)
    assert copied.up.weight.sharding == sharded.up.weight.sharding
    assert copied.head.weight is copied.embed.weight is not sharded.embed.weight
    assert copied.up.weight.requires_grad
    assert copied.up.weight.grad is None  # as of any nn.Parameter
    with torch.no_grad():
        copied.up.weight.zero_()
    assert_same_values(sharded, ordinary)
    for model in (copied, ordinary):
        model.load_state_dict(sharded.state_dict())
        model(tokens).logsumexp(-1).sum().backward()
    torch.testing.assert_close(copied.up.weight.grad.cpu(), ordinary.up.weight.grad.cpu(), rtol=1e-12, atol=1e-14)


def test_copies_of_states_and_gradients(twins: Twins, tokens: Tensor) -> None:
    sharded, _ = twins()
    sharded(tokens).sum().backward()
    state = copy.deepcopy(sharded.state_dict())
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    gradient = copy.deepcopy(sharded.up.weight.grad)
    sharded.zero_grad(set_to_none=False)
    assert isinstance(gradient, ShardedTensor)
    assert gradient.abs().sum().item() > 0


def test_a_shallow_copy_is_another_name_of_the_values(twins: Twins) -> None:
    sharded, _ = twins()
    with torch.no_grad():
        copy.copy(sharded.up.weight).fill_(2.0)
    assert sharded.up.weight.cpu().unique().tolist() == [2.0]


def test_a_parameter_made_of_a_copy_is_sharded_and_learns(twins: Twins) -> None:
    sharded, _ = twins()
    made = nn.Parameter(sharded.up.weight.detach().clone())
    assert isinstance(made, nn.Parameter)
    made.pow(2).sum().backward()
    torch.optim.SGD([made], lr=0.25).step()
    torch.testing.assert_close(made.cpu(), sharded.up.weight.cpu() / 2)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_a_whole_parameter_on_the_host(protocol: int, twins: Twins) -> None:
    sharded, _ = twins()
    sharded.up.weight.requires_grad_(False)
    sharded.embed.weight.users_own = "kept"
    embed, up, again = pickle.loads(
        pickle.dumps([sharded.embed.weight, sharded.up.weight, sharded.embed.weight], protocol)
    )
    assert embed is again
    assert type(embed) is type(up) is nn.Parameter
    assert (embed.requires_grad, up.requires_grad) == (True, False)
    assert embed.device.type == "cpu"
    assert embed.users_own == "kept"
    assert torch.equal(up, sharded.up.weight.cpu())
    assert torch.equal(saved_and_loaded(sharded.up.weight), up)


def test_safetensors(twins: Twins, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    sharded, ordinary = twins()
    state = sharded.state_dict()
    del state["head.weight"]
    safetensors.save_file(state, tmp_path / "model.safetensors")
    loaded = safetensors.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], ordinary.get_parameter(name).cpu()) for name in state)
    with pytest.raises(RuntimeError, match="share memory"):  # as of any two that are tied
        safetensors.save_file(sharded.state_dict(), tmp_path / "tied.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_save_pretrained(tied: bool, devices: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that watches the progress bar
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    splits = {
        name: Split.from_shares(parameter.shape[0], [1, 1])
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }
    shard_parameters(model, splits, devices[:2])
    model.save_pretrained(tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied
    for name, value in values.items():
        assert torch.equal(loaded.get_parameter(name), value), name
    safetensors = pytest.importorskip("safetensors.torch")
    saved = safetensors.load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in saved) != tied
