"""Parameters of a model split over cards by name, and made whole again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from poolrt.errors import ConfigurationError, ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.convert import check_holders, shard_parameter, unshard_parameter
from poolrt.runtime.sharded.loading import keep_sharded
from poolrt.runtime.sharded.optimizers import follow_optimizers, gather_state
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.sharding import Allocating, Sharding, plainly

_handles: weakref.WeakKeyDictionary[nn.Module, RemovableHandle] = weakref.WeakKeyDictionary()


def shard_parameters(
    model: nn.Module,
    splits: Mapping[str, Split],
    devices: Sequence[torch.device],
    allocating: Callable[[str], Allocating] = lambda name: plainly,
) -> None:
    """Split the named parameters of `model` over `devices`, one after another. They stay the same objects.

    A tied parameter is split once, under whichever of its names is given. All are checked before the first is split.

    Args:
        model: keeps its class, its parameters, their names and the keys of its state_dict.
        splits: parameter name to how it is dealt out.
        devices: of the cards, as many as each split has.
        allocating: for a parameter's name and the ordinal of a card, what that piece is allocated in.

    Raises:
        ConfigurationError: if there is no parameter of that name, or its split does not fit it or the devices.
        ModelError: if a parameter cannot be split: without values, already split, or held by a graph.
        torch.OutOfMemoryError: if a card has no room for its pieces; the model is as before then.
    """
    wanted = _parameters_to_split(model, splits)
    for name, (parameter, split) in wanted.items():
        _check(name, parameter, split, devices)
    done: list[ShardedParameter] = []
    try:
        for name, (parameter, split) in wanted.items():
            done.append(shard_parameter(parameter, split, devices, allocating(name)))
    except BaseException:
        for parameter in reversed(done):
            unshard_parameter(parameter)
        raise
    follow_optimizers()
    for module in _modules_with_pieces(model):
        if module not in _handles:
            _handles[module] = module.register_load_state_dict_pre_hook(keep_sharded)


def unshard_parameters(model: nn.Module) -> None:
    """The exact inverse of `shard_parameters`: the same objects, whole, where they were, with their optimizers' state.

    Raises:
        ModelError: if a graph holds one of them.
        torch.OutOfMemoryError: if there is no room for them where they were; they are split as before then.
    """
    sharded = [parameter for parameter in model.parameters() if isinstance(parameter, ShardedParameter)]
    for parameter in sharded:
        check_holders(parameter)
    modules, done = list(_modules_with_pieces(model)), []
    try:
        for parameter in sharded:
            sharding = parameter.sharding
            gather_state([parameter])
            done.append((unshard_parameter(parameter), sharding))
    except BaseException:
        for whole, sharding in reversed(done):
            shard_parameter(whole, sharding.split, sharding.devices)
        raise
    for module in modules:
        handle = _handles.pop(module, None)
        if handle is not None:
            handle.remove()


def _parameters_to_split(model: nn.Module, splits: Mapping[str, Split]) -> dict[str, tuple[nn.Parameter, Split]]:
    """Each parameter once, by the first name given for it."""
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted: dict[int, tuple[str, nn.Parameter, Split]] = {}
    for name, split in splits.items():
        if name not in named:
            raise ConfigurationError(f"{type(model).__name__} has no parameter {name!r} to split")
        first, _, other = wanted.setdefault(id(named[name]), (name, named[name], split))
        if other != split:
            raise ConfigurationError(f"{first!r} and {name!r} are one parameter, but their splits differ")
    return {name: (parameter, split) for name, parameter, split in wanted.values()}


def _check(name: str, parameter: nn.Parameter, split: Split, devices: Sequence[torch.device]) -> None:
    if isinstance(parameter, ShardedParameter):
        raise ModelError(f"{name!r} is split already; undo that first (unshard_parameters)")
    if type(parameter) is not nn.Parameter or parameter.layout != torch.strided or parameter.is_meta:
        raise ModelError(
            f"{name!r} is a {type(parameter).__name__} on {parameter.device} ({parameter.layout}); only an ordinary "
            "nn.Parameter with values can be split"
        )
    try:
        Sharding(tuple(parameter.shape), split, tuple(devices))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name!r}: {error}") from error
    try:
        check_holders(parameter)
    except ModelError as error:
        raise ModelError(f"{name!r}: {error}") from error


def _modules_with_pieces(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if any(isinstance(parameter, ShardedParameter) for parameter in module._parameters.values()):
            yield module
