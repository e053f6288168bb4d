"""One parameter split and made whole again, under the very object that the user holds."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.gradients import IntoPieces, put_first, shard_tensor
from poolrt.runtime.sharded.parameter import ShardedParameter, users_attributes
from poolrt.runtime.sharded.sharding import Allocating, Sharding, plainly
from poolrt.runtime.sharded.tensor import Sharded


def shard_parameter(
    parameter: nn.Parameter, split: Split, devices: Sequence[torch.device], allocating: Allocating = plainly
) -> ShardedParameter:
    """Deal the values of `parameter`, and its gradient, out over `devices`. It stays the same object.

    Each card gets its piece and no more. Hooks, attributes and optimizers that hold the parameter stay.

    Args:
        parameter: whole, on any device.
        split: how it is dealt out.
        devices: of the cards.
        allocating: for the ordinal of a card, what its piece of the values is allocated in; its gradient is not.

    Raises:
        ConfigurationError: if the split does not fit the parameter or the devices.
        ModelError: if something holds the parameter in a way that cannot be kept: a graph, a weak reference.
        torch.OutOfMemoryError: if a card has no room for its piece; the parameter is as before then.
    """
    sharding = Sharding(tuple(parameter.shape), split, tuple(devices))
    check_holders(parameter)
    with torch.no_grad():
        values = parameter.detach()
        gradient = parameter.grad
        made = ShardedParameter(
            sharding.scatter(values, None, allocating), sharding, values.stride(), parameter.requires_grad
        )
        kept = None if gradient is None else shard_tensor(gradient, sharding)
        made.origin = parameter.device
        del values, gradient
        _take_place(parameter, made, kept)
    assert isinstance(parameter, ShardedParameter)
    return parameter


def unshard_parameter(parameter: ShardedParameter, device: torch.device | None = None) -> nn.Parameter:
    """The exact inverse of `shard_parameter`: the same object, an ordinary parameter again.

    Args:
        parameter: it, its gradient and hooks stay; pieces of it that someone holds become empty, so that nothing can
            be computed with values of before.
        device: where to; None for where it was before.

    Raises:
        ModelError: as `shard_parameter`.
        torch.OutOfMemoryError: if there is no room for the whole; the parameter is as before then.
    """
    check_holders(parameter)
    target = device or parameter.origin
    with torch.no_grad():
        gradient = parameter.grad
        if gradient is not None:
            gradient = gradient.whole(target) if isinstance(gradient, Sharded) else gradient.to(target)
        given_out = parameter.pieces_in_use()
        _take_place(parameter, nn.Parameter(parameter.whole(target), parameter.requires_grad), gradient)
        for piece in given_out:
            piece.detach_()
            piece.grad = None
            piece.data = piece.new_empty(0)
    return parameter


def check_holders(parameter: nn.Parameter) -> None:
    """Raise if the parameter cannot be another tensor under the same object.

    Raises:
        ModelError: if a weak reference or a graph holds it.
    """
    if weakref.getweakrefs(parameter):
        raise ModelError(
            f"a parameter of shape {tuple(parameter.shape)} has weak references (a WeakValueDictionary or a WeakSet "
            "holds it), which cannot follow it to its pieces; split the model before whatever made them"
        )
    if cast(Any, parameter)._use_count() > 2 or not parameter.is_leaf:
        raise ModelError(
            f"a parameter of shape {tuple(parameter.shape)} is part of a graph whose backward has not run; call "
            "backward, or let go of the outputs of the last forward (del loss, output), then try again"
        )


def _take_place(parameter: nn.Parameter, made: nn.Parameter, gradient: Tensor | None) -> None:
    """`parameter` becomes what `made` is, by torch.utils.swap_tensors; what that leaves behind is brought along.

    A backward through a graph of before is refused from then on (https://github.com/pytorch/pytorch/pull/127313).
    """
    before = parameter.grad
    hooks = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks, made._backward_hooks)
    vars(made).update(users_attributes(parameter))
    parameter.grad = None
    try:
        torch.utils.swap_tensors(parameter, made)
    except RuntimeError as error:
        parameter.grad = before
        raise ModelError(f"a parameter of shape {tuple(parameter.shape)} cannot be exchanged: {error}") from error
    _hang(parameter, *cast(Any, hooks))
    parameter.grad = gradient


_Hooks = OrderedDict[int, Any]


def _hang(parameter: nn.Parameter, before: _Hooks | None, after: _Hooks | None, own: _Hooks | None) -> None:
    """Give `parameter` the user's very dictionaries of hooks before and after accumulation.

    The handles that remove hooks refer to those. Of poolrt's it has its `own`, first. torch has no public way to bring
    hooks from one tensor to another.
    """
    hooks = OrderedDict() if before is None else before
    for key in [key for key, hook in hooks.items() if isinstance(hook, IntoPieces)]:
        del hooks[key]
    put_first(hooks, own or {})
    if hooks or before is not None:
        parameter._backward_hooks = hooks
    if after is not None:
        parameter._post_accumulate_grad_hooks = after
