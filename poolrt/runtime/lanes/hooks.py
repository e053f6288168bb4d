"""The two hooks on every placed layer. They ask the thread's walker; without one they only move the arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from poolrt.runtime.lanes.lane import current
from poolrt.runtime.state.compiled import untraced
from poolrt.runtime.state.layers import Layer

Mover = Callable[[nn.Module, Any], Any]


def hook_layers(layers: Iterable[Layer], move: Mover) -> list[RemovableHandle]:
    """Install the hooks.

    Args:
        layers: where.
        move: `(layer's module, value) -> value` on the layer's device, for a layer called outside the model's forward.
    """

    @untraced
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        walker = current.walker
        return move(module, (args, kwargs)) if walker is None else walker.before(module, args, kwargs)

    @untraced
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        walker = current.walker
        return output if walker is None else walker.after(module, output)

    handles = []
    for layer in layers:
        handles.append(layer.module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        handles.append(layer.module.register_forward_hook(after, always_call=True))
    return handles


@contextmanager
def hooked(layers: Iterable[Layer], move: Mover) -> Iterator[None]:
    """The hooks for a while."""
    handles = hook_layers(layers, move)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
