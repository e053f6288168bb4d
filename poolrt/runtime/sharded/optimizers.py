"""Optimizers of sharded parameters: their state lies as the parameter does, from the first step or the loading on.

State that was made before the split, or that a checkpoint holds, is whole. It is cut before the optimizer uses it:

    exp_avg (12, 8) on the host  ->  piece 0 on card 0, piece 1 on card 1
    step () and factored statistics of other shapes stay plain, on the first card
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.stepping import StandIn, steps_by_piece
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor

_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_stand_ins: weakref.WeakKeyDictionary[Optimizer, StandIn] = weakref.WeakKeyDictionary()
_installed: list[Any] = []


def follow_optimizers() -> None:
    """From now on, every optimizer's state of sharded parameters is kept in pieces."""
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_before_step))
        _installed.append(register_optimizer_step_post_hook(_after_step))
        Optimizer.load_state_dict = _cutting(Optimizer.load_state_dict)  # type: ignore[method-assign]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    end_step(optimizer)  # of one that raised torch tells nobody
    sharded = list(_sharded_parameters(optimizer))
    if not sharded:
        return None
    _optimizers.add(optimizer)
    for parameter in sharded:
        state = optimizer.state.get(parameter)
        if state:
            state.update(_cut(state, parameter))
    if not steps_by_piece(optimizer, args, kwargs):
        return None
    stand_in = _stand_ins[optimizer] = StandIn(optimizer)
    return (stand_in.optimizer, *args[1:]), kwargs


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    end_step(optimizer)


def end_step(optimizer: Optimizer) -> None:
    """The optimizer's own place again, after its step or one that was refused: its pieces hold no gradients then."""
    stand_in = _stand_ins.pop(optimizer, None)
    if stand_in is not None:
        stand_in.hand_over(optimizer)


def _sharded_parameters(optimizer: Optimizer) -> Iterator[ShardedParameter]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if isinstance(parameter, ShardedParameter))


def _cut(state: dict[str, Any], parameter: ShardedParameter, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The entries of `state` that have to change: those like the parameter into pieces, others to the first card."""
    changed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if value.shape == parameter.shape and not isinstance(value, ShardedTensor):
            pieces = parameter.sharding.scatter(value, dtype if value.is_floating_point() else None)
            changed[name] = ShardedTensor(pieces, parameter.sharding, value.stride())
        elif value.device != parameter.device:
            changed[name] = value.to(parameter.device)
    return changed


def _cutting(load: Any) -> Any:
    """`Optimizer.load_state_dict`, which would put whole tensors on the first card.

    torch has hooks for the loading of one optimizer (https://github.com/pytorch/pytorch/pull/105953) and for the steps
    of all, but none for the loading of all.
    """

    @functools.wraps(load)
    def load_state_dict(self: Optimizer, state_dict: dict[str, Any]) -> None:
        load(self, _cut_state_dict(self, state_dict))

    return load_state_dict


def _cut_state_dict(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """`state_dict` with state in pieces for sharded parameters, and whole for others; the caller's own stays."""
    here = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [key for group in state_dict["param_groups"] for key in group["params"]]
    if len(here) != len(saved):
        return state_dict  # torch's to refuse
    entries = dict(state_dict["state"])
    for key, parameter in zip(saved, here, strict=True):
        if isinstance(parameter, ShardedParameter):
            _optimizers.add(optimizer)
        if key not in entries:
            continue
        state = entries[key]
        if isinstance(parameter, ShardedParameter):
            dtype = parameter.dtype if parameter.is_floating_point() else None
            entries[key] = state | _cut(state, parameter, dtype)
        elif any(isinstance(value, Sharded) for value in state.values()):
            entries[key] = {name: _gathered(value, parameter.device) for name, value in state.items()}
    return {**state_dict, "state": entries}


def gather_state(parameters: Iterable[ShardedParameter]) -> None:
    """Make the optimizers' state of these parameters whole again, where each parameter was before it was split.

    Raises:
        torch.OutOfMemoryError: if there is no room for it.
    """
    wanted = {id(parameter): parameter for parameter in parameters}
    for optimizer in list(_optimizers):
        for parameter in _sharded_parameters(optimizer):
            if id(parameter) in wanted:
                state = optimizer.state.get(parameter, {})
                state.update({name: _gathered(value, parameter.origin) for name, value in state.items()})


def _gathered(value: Any, device: torch.device) -> Any:
    if isinstance(value, Sharded):
        return value.whole(device)
    return value.to(device) if isinstance(value, Tensor) and value.dim() > 0 else value
