"""A step of torch's own elementwise optimizers, taken on the pieces themselves, at the speed of plain tensors.

    optimizer    params [a, p]          state {a: .., p: exp_avg (12, 8), step 3}
    stand-in     params [a, p0, p1]     state {a: .., p0: exp_avg (6, 8), step 3, p1: exp_avg (6, 8), step 3}

The step's hooks may change its arguments, and the first of them is the optimizer: for one step a stand-in takes its
place, which has the pieces for parameters. Afterwards its state is the optimizer's, put together again. Optimizers that
are not known to work element by element step the whole parameters, whose operators do what is right.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor

_ELEMENTWISE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.ASGD,
        torch.optim.Rprop,
    }
)


def steps_by_piece(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step with these arguments can be taken by a stand-in.

    Not with a closure, which computes the gradients only during the step, nor where the step is itself differentiated.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    return type(optimizer) in _ELEMENTWISE and closure is None and not differentiable


class StandIn:
    """Takes an optimizer's place for one step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._stepped: list[ShardedParameter] = []
        self.optimizer = object.__new__(type(optimizer))
        """has the pieces for parameters, and all else from the optimizer"""
        self._state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        groups = [group | {"params": self._plain(group["params"], optimizer)} for group in optimizer.param_groups]
        vars(self.optimizer).update(vars(optimizer) | {"param_groups": groups, "state": self._state})

    def _plain(self, parameters: list[Tensor], optimizer: Optimizer) -> list[Tensor]:
        """`parameters`, with pieces in place of sharded ones, all with their gradients and state."""
        plain: list[Tensor] = []
        for parameter in parameters:
            if isinstance(parameter, ShardedParameter):
                if parameter.grad is not None:
                    plain += self._pieces(parameter, optimizer.state.get(parameter, {}))
                continue
            plain.append(parameter)
            if parameter in optimizer.state:
                self._state[parameter] = optimizer.state[parameter]
        return plain

    def _pieces(self, parameter: ShardedParameter, state: dict[str, Any]) -> tuple[Tensor, ...]:
        assert parameter.grad is not None
        gradient = _split(parameter.grad, parameter)
        self._stepped.append(parameter)
        for card, piece in enumerate(parameter.pieces):
            piece.grad = gradient.pieces[card]
            if state:
                self._state[piece] = {name: _part(value, piece, card) for name, value in state.items()}
        return parameter.pieces

    def hand_over(self, optimizer: Optimizer) -> None:
        """Give the optimizer what the step has made of the state, the groups and itself."""
        for parameter in self._stepped:
            for piece in parameter.pieces:
                piece.grad = None
            states = [self._state.pop(piece, {}) for piece in parameter.pieces]
            if states[0] and all(of.keys() == states[0].keys() for of in states):  # else the step broke off before
                state = optimizer.state[parameter]
                for name in states[0]:
                    state[name] = _joined([of[name] for of in states], state.get(name), parameter)
        optimizer.state.update(self._state)
        for group, stepped in zip(optimizer.param_groups, self.optimizer.param_groups, strict=True):
            group.update({name: value for name, value in stepped.items() if name != "params"})
        own = vars(self.optimizer)
        vars(optimizer).update({name: own[name] for name in own if name not in ("param_groups", "state")})


def _split(gradient: Tensor, parameter: ShardedParameter) -> ShardedTensor:
    """A gradient that the user assigned may be whole, or split otherwise."""
    if isinstance(gradient, ShardedTensor) and gradient.sharding == parameter.sharding:
        return gradient
    whole = gradient.whole() if isinstance(gradient, Sharded) else gradient
    return ShardedTensor(parameter.sharding.scatter(whole), parameter.sharding)


def _part(value: Any, piece: Tensor, card: int) -> Any:
    """What `card` needs of an entry of the state: its piece, or a number of its own (each piece counts its steps)."""
    if isinstance(value, ShardedTensor):
        return value.pieces[card]
    if not isinstance(value, Tensor) or card == 0:
        return value
    return value.clone() if value.device.type == "cpu" else value.to(piece.device, copy=True)


def _joined(parts: list[Any], known: Any, parameter: ShardedParameter) -> Any:
    """The entry of the whole from those of its pieces; the one there is if they are its own."""
    if not isinstance(parts[0], Tensor) or parts[0].dim() == 0:
        return parts[0]
    if isinstance(known, ShardedTensor) and all(a is b for a, b in zip(known.pieces, parts, strict=True)):
        return known
    return ShardedTensor(parts, parameter.sharding, parameter.stride())
