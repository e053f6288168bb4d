"""What makes a pooled model still look and behave like the user's own: forward, moving, copying, pickling.

The class stays, so these are attributes of the one object; `undone` takes them off for a while.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.runtime.state.compiled import untraced_forward

MARK = "_poolrt_pooled"
_NAMES = ("forward", "_apply", "__deepcopy__", "__reduce_ex__")


def disguise(
    model: nn.Module,
    pooled: Any,
    *,
    forward: Callable[..., Any],
    devices: Sequence[torch.device],
    twin: Callable[[nn.Module], None],
    on_new_dtype: Callable[[], None],
) -> None:
    """Put poolrt's behaviour on `model`.

    Args:
        model: the user's object.
        pooled: what `poolrt.report` finds again.
        forward: the pooled forward; it keeps the signature of the model's own.
        devices: the cards.
        twin: pools a deep copy, whose weights are on the same cards.
        on_new_dtype: called after the weights were converted.
    """
    own_apply = model._apply
    wrapped = untraced_forward(forward, like=model.forward)
    setattr(wrapped, MARK, pooled)

    def apply(function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if _stays_put(function, devices):
            result = own_apply(function, recurse)
            on_new_dtype()
            return result
        return model

    def deepcopy(memo: dict[int, Any]) -> nn.Module:
        with undone(model):
            copied = copy.deepcopy(model, memo)
        twin(copied)
        return copied

    def reduce(protocol: Any) -> Any:
        with undone(model):
            return _on_the_host(model).__reduce_ex__(protocol)

    model.__dict__.update({"forward": wrapped, "_apply": apply, "__deepcopy__": deepcopy, "__reduce_ex__": reduce})


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """The bare model, without poolrt's attributes and hooks."""
    taken = {name: model.__dict__.pop(name) for name in _NAMES}
    pooled = getattr(taken["forward"], MARK)
    pooled.remove_hooks()
    try:
        yield
    finally:
        pooled.add_hooks()
        model.__dict__.update(taken)


def _stays_put(function: Callable[[Tensor], Tensor], devices: Sequence[torch.device]) -> bool:
    """Whether a conversion leaves every card's tensors there; one that gathers them on a card is passed over.

    Raises:
        ModelError: if it would take the weights away from the cards.
    """
    targets = {function(torch.empty(0, device=device)).device for device in devices}
    if targets == set(devices):
        return True
    (target,) = targets if len(targets) == 1 else (None,)
    if target not in devices:
        raise ModelError(
            f"the model is spread over {', '.join(map(str, devices))} and cannot be moved to {target}; "
            "to have its weights elsewhere, load its state_dict() into a fresh model there"
        )
    warnings.warn(f"poolrt: the model stays spread over its cards; moving it to {target} is passed over", stacklevel=4)
    return False


def _on_the_host(model: nn.Module) -> nn.Module:
    """A copy of a bare model with every tensor on the host."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().cpu(), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().cpu()
    return copy.deepcopy(model, memo)
