"""Optimizers of pooled models: their state follows the parameters, and a step that cannot fit is refused beforehand.

torch's optimizers update one card after another. If memory ran out at the second card, the first one's parameters
would already have changed; so before a step the memory it needs is asked for, and given back at once.

Where the plan spills optimizer state, a step allocates from the pool. Logical cards share a device, and an optimizer
steps all of a device's parameters together: there it is made to step card by card, each with the others' gradients out
of its sight, so that every card's state comes from its own share.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from poolrt.planning.granules import block_nbytes
from poolrt.planning.optimizers import optimizer_cost
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.placing.spill import Spill
from poolrt.runtime.sharded.optimizers import end_step as end_step_in_pieces
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.tensor import nbytes_by_device
from poolrt.runtime.state.memory_watch import granular
from poolrt.transfer.move import move

_pooled_parameters: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()  # by id
_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_spills: weakref.WeakValueDictionary[int, Spill] = weakref.WeakValueDictionary()  # by id of the parameter
_capped: weakref.WeakValueDictionary[int, Placement] = weakref.WeakValueDictionary()  # likewise, of logical cards
_guards: weakref.WeakValueDictionary[int, Guard] = weakref.WeakValueDictionary()  # likewise
_installed: list[Any] = []


class _Stepping(threading.local):
    """This thread's step: the pools it allocates from, and the gradients that are out of its sight."""

    def __init__(self) -> None:
        self.scopes = ExitStack()
        self.hidden: dict[nn.Parameter, Tensor] = {}
        self.on_one_card = False


_stepping = _Stepping()


class Guard(Protocol):
    """Who explains that memory ran out."""

    def run(self, work: Callable[[], Any]) -> Any:
        """Run `work`; its out-of-memory errors come out explained."""


def follow(placement: Placement, spill: Spill | None = None, guard: Guard | None = None) -> None:
    """From now on, optimizers that step the parameters of this placement's model are looked after.

    Args:
        placement: of one pooled model.
        spill: where their state goes, if the plan spills it.
        guard: explains why a step is refused.
    """
    for parameter in placement.model.parameters():
        for known in (_spills, _capped, _guards):
            known.pop(id(parameter), None)
        if guard is not None:
            _guards[id(parameter)] = guard
        if spill is not None:
            _spills[id(parameter)] = spill
        if isinstance(parameter, ShardedParameter):
            continue  # known by what it is; nobody may hold it so that it could not be made whole again
        _pooled_parameters[id(parameter)] = parameter
        if placement.caps is not None:
            _capped[id(parameter)] = placement
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_before_step))
        _installed.append(register_optimizer_step_post_hook(_after_step))


def forget(placement: Placement) -> None:
    """No longer look after the parameters of this placement's model: who is to split them may find no one's hold."""
    for parameter in placement.model.parameters():
        for known in (_pooled_parameters, _spills, _capped, _guards):
            known.pop(id(parameter), None)


def state_nbytes(parameters: Iterator[nn.Parameter]) -> dict[torch.device, int]:
    """Bytes of optimizer state held for `parameters`, by device."""
    totals: dict[torch.device, int] = defaultdict(int)
    wanted = {id(parameter) for parameter in parameters}
    for optimizer in list(_optimizers):
        for parameter, state in optimizer.state.items():
            if id(parameter) in wanted:
                for value in state.values():
                    if isinstance(value, Tensor):
                        for device, nbytes in nbytes_by_device(value).items():
                            totals[device] += nbytes
    return dict(totals)


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _stepping.on_one_card:
        return  # the step that called has seen to everything
    end_step()
    parameters = [p for group in optimizer.param_groups for p in group["params"] if _is_pooled(p)]
    if not parameters:
        return
    _optimizers.add(optimizer)
    guard = next((guard for parameter in parameters if (guard := _guards.get(id(parameter))) is not None), None)
    try:
        if guard is None:
            _make_ready(optimizer, args, kwargs, parameters)
        else:
            guard.run(lambda: _make_ready(optimizer, args, kwargs, parameters))
    except BaseException:
        end_step()
        end_step_in_pieces(optimizer)
        raise


def _make_ready(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Sequence[nn.Parameter]
) -> None:
    """See that the step has what it needs; logical cards then take it at once."""
    spills = {spill for parameter in parameters if (spill := _spills.get(id(parameter))) is not None}
    by_card = {} if _has_closure(args, kwargs) else _by_logical_card(parameters)
    if not by_card:
        for spill in spills:
            _stepping.scopes.enter_context(spill.for_optimizer())
    for parameter in parameters:
        _bring_state(optimizer.state.get(parameter), parameter)
    if by_card:
        _step_by_card(optimizer, args, kwargs, by_card)
    else:
        _reserve(optimizer, spills)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _stepping.on_one_card:
        end_step()


def end_step() -> None:
    """Put everything as it is between steps: torch tells nobody of a step that raised, so whoever comes next asks."""
    _stepping.scopes.close()
    _stepping.on_one_card = False
    for parameter, gradient in _stepping.hidden.items():
        parameter.grad = gradient
    _stepping.hidden = {}


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """A closure computes all gradients anew: such a step cannot be taken card by card."""
    return kwargs.get("closure", args[1] if len(args) > 1 else None) is not None


_Shares = dict[tuple[Placement, int], list[nn.Parameter]]


def _by_logical_card(parameters: Iterable[nn.Parameter]) -> _Shares:
    shares: _Shares = defaultdict(list)
    for parameter in parameters:
        placement = _capped.get(id(parameter))
        if placement is not None and parameter.grad is not None:
            shares[placement, placement.home[id(parameter)]].append(parameter)
    return shares


def _step_by_card(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], shares: _Shares) -> None:
    """Reserve on every card, then step each; the step that called finds no gradient of theirs."""
    hidden = _stepping.hidden = {p: p.grad for share in shares.values() for p in share if p.grad is not None}
    for parameter in hidden:
        parameter.grad = None
    _stepping.on_one_card = True
    for reserving in (True, False):
        for (placement, card), share in shares.items():
            spill = _spills.get(id(share[0]))
            spills = [spill] if spill is not None and card in spill.homes else []
            for parameter in share:
                parameter.grad = hidden[parameter]
            with spills[0].pool.use(card) if spills else placement.on(card):
                _reserve(optimizer, spills) if reserving else optimizer.step(*args[1:], **kwargs)
            for parameter in share:
                parameter.grad = None
    _stepping.on_one_card = False


def _is_pooled(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, ShardedParameter) or _pooled_parameters.get(id(parameter)) is parameter


def _bring_state(state: dict[str, Any] | None, parameter: nn.Parameter) -> None:
    """State made before the parameter went to its card goes there too; step counters stay where they are."""
    if isinstance(parameter, ShardedParameter):
        return  # its state is cut when the step is taken
    for name, value in (state or {}).items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.device != parameter.device:
            state[name] = move(value, parameter.device)  # type: ignore[index]


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
            if parameter.grad is None or not _is_pooled(parameter):
                continue
            for part in parameter.pieces if isinstance(parameter, ShardedParameter) else (parameter,):
                spilled = any(spill.holds_state_of(part.device) for spill in spills)
                nbytes = block_nbytes(part.nbytes) if spilled else granular(part.nbytes)
                stepped[part.device].append(nbytes)
                state[part.device] += 0 if optimizer.state.get(parameter) else cost.state * nbytes
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
