"""Optimizers of pooled models: their state follows the parameters, and a step that cannot fit is refused beforehand.

torch's optimizers update one card after another. If memory ran out at the second card, the first one's parameters
would already have changed; so before a step the memory it needs is asked for, and given back at once.

Where the plan spills optimizer state, a step allocates from the pool.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from poolrt.memory.extent import block_nbytes
from poolrt.planning.optimizers import optimizer_cost
from poolrt.runtime.memory_watch import granular
from poolrt.runtime.spill import Spill

_pooled_parameters: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()  # by id
_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_spills: weakref.WeakValueDictionary[int, Spill] = weakref.WeakValueDictionary()  # by id of the parameter
_installed: list[Any] = []


class _Spilling(threading.local):
    """The pools that this thread's step allocates from."""

    def __init__(self) -> None:
        self.scopes = ExitStack()


_spilling = _Spilling()


def follow(parameters: Iterable[nn.Parameter], spill: Spill | None = None) -> None:
    """From now on, optimizers that step these parameters are looked after.

    Args:
        parameters: of one pooled model.
        spill: where their state goes, if the plan spills it.
    """
    for parameter in parameters:
        _pooled_parameters[id(parameter)] = parameter
        _spills.pop(id(parameter), None)
        if spill is not None:
            _spills[id(parameter)] = spill
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_before_step))
        _installed.append(register_optimizer_step_post_hook(_after_step))


def state_nbytes(parameters: Iterator[nn.Parameter]) -> dict[torch.device, int]:
    """Bytes of optimizer state held for `parameters`, by device."""
    totals: dict[torch.device, int] = defaultdict(int)
    wanted = {id(parameter) for parameter in parameters}
    for optimizer in list(_optimizers):
        for parameter, state in optimizer.state.items():
            if id(parameter) in wanted:
                for value in state.values():
                    if isinstance(value, Tensor):
                        totals[value.device] += value.nbytes
    return dict(totals)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    leave_pools()
    parameters = [p for group in optimizer.param_groups for p in group["params"] if _is_pooled(p)]
    if not parameters:
        return
    _optimizers.add(optimizer)
    spills = {spill for parameter in parameters if (spill := _spills.get(id(parameter))) is not None}
    try:
        for spill in spills:
            _spilling.scopes.enter_context(spill.for_optimizer())
        for parameter in parameters:
            _bring_state(optimizer.state.get(parameter), parameter)
        _reserve(optimizer, spills)
    except BaseException:
        leave_pools()
        raise


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    leave_pools()


def leave_pools() -> None:
    """Allocate as before the last step: torch tells nobody of a step that raised, so whoever comes next asks for it."""
    _spilling.scopes.close()


def _is_pooled(parameter: nn.Parameter) -> bool:
    return _pooled_parameters.get(id(parameter)) is parameter


def _bring_state(state: dict[str, Any] | None, parameter: nn.Parameter) -> None:
    """State made before the parameter went to its card goes there too; step counters stay where they are."""
    for name, value in (state or {}).items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.device != parameter.device:
            state[name] = value.to(parameter.device)  # type: ignore[index]


def _reserve(optimizer: Optimizer, spills: Iterable[Spill] = ()) -> None:
    """Ask each card, or the pool behind it, for what the step will need.

    Raises:
        torch.OutOfMemoryError: if a card has not got it; no parameter or state has changed then.
    """
    state: dict[torch.device, int] = defaultdict(int)
    temporaries: dict[torch.device, int] = defaultdict(int)
    for group in optimizer.param_groups:
        cost = optimizer_cost(_planned_name(optimizer, group))
        stepped: dict[torch.device, list[int]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None and _is_pooled(parameter):
                spilled = any(spill.holds_state_of(parameter.device) for spill in spills)
                nbytes = block_nbytes(parameter.nbytes) if spilled else granular(parameter.nbytes)
                stepped[parameter.device].append(nbytes)
                state[parameter.device] += 0 if optimizer.state.get(parameter) else cost.state * nbytes
        for device, sizes in stepped.items():
            temporaries[device] = max(temporaries[device], cost.temporaries * _at_once(group, sizes))
    for device, nbytes in state.items():
        pools = [spill.pool for spill in spills if spill.holds_state_of(device)]
        if pools and nbytes == 0:
            continue  # the pool has had room for it before, and mapping memory takes time
        if device.type != "cpu" and nbytes + temporaries[device]:
            torch.empty(nbytes + temporaries[device], dtype=torch.uint8, device=device)
        for pool in pools:
            pool.trim()  # the pages are wanted in other pieces


def _at_once(group: dict[str, Any], sizes: list[int]) -> int:
    """Of how many bytes of parameters an update holds the temporaries at one time."""
    if group.get("fused"):
        return 0
    return max(sizes) if group.get("foreach") is False else sum(sizes)


def _planned_name(optimizer: Optimizer, group: dict[str, Any]) -> str:
    """The planner's name for this optimizer as it is set; one it does not know needs nothing beforehand."""
    name = type(optimizer).__name__.lower()
    if name in ("adam", "adamw"):
        return f"{name}-amsgrad" if group.get("amsgrad") else name
    if name == "sgd":
        momentum = "-momentum" if group.get("momentum") else ""
        decay = "-weight-decay" if group.get("weight_decay") else ""
        return f"sgd{momentum}{decay}"
    if name == "rmsprop":
        return "rmsprop-momentum" if group.get("momentum") else name
    return name if name in ("adamax", "nadam", "radam", "adagrad", "adadelta") else "none"
