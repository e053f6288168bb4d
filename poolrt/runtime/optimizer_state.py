"""Optimizers of pooled models: their state follows the parameters, and a step that cannot fit is refused beforehand.

torch's optimizers update one card after another. If memory ran out at the second card, the first one's parameters
would already have changed; so before a step the memory it needs is asked for, and given back at once.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from poolrt.planning.optimizers import optimizer_cost
from poolrt.runtime.memory_watch import granular

_pooled_parameters: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()  # by id
_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_installed: list[Any] = []


def follow(parameters: Iterator[nn.Parameter]) -> None:
    """From now on, optimizers that step these parameters are looked after."""
    _pooled_parameters.update((id(parameter), parameter) for parameter in parameters)
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_before_step))


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
    parameters = [p for group in optimizer.param_groups for p in group["params"] if _is_pooled(p)]
    if not parameters:
        return
    _optimizers.add(optimizer)
    for parameter in parameters:
        _bring_state(optimizer.state.get(parameter), parameter)
    _reserve(optimizer)


def _is_pooled(parameter: nn.Parameter) -> bool:
    return _pooled_parameters.get(id(parameter)) is parameter


def _bring_state(state: dict[str, Any] | None, parameter: nn.Parameter) -> None:
    """State made before the parameter went to its card goes there too; step counters stay where they are."""
    for name, value in (state or {}).items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.device != parameter.device:
            state[name] = value.to(parameter.device)  # type: ignore[index]


def _reserve(optimizer: Optimizer) -> None:
    """Ask each card for what the step will need.

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
                nbytes = granular(parameter.nbytes)
                stepped[parameter.device].append(nbytes)
                state[parameter.device] += 0 if optimizer.state.get(parameter) else cost.state * nbytes
        for device, sizes in stepped.items():
            temporaries[device] = max(temporaries[device], cost.temporaries * _at_once(group, sizes))
    for device, nbytes in state.items():
        if device.type != "cpu" and nbytes + temporaries[device]:
            torch.empty(nbytes + temporaries[device], dtype=torch.uint8, device=device)


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
