"""torch.compile and the runtime: what moves tensors and hands cards over is never traced.

torch.compile(model)          the pooled forward runs as it is, and a warning says so
layer.compile()               the layer's own forward is compiled; the runtime's hooks around it are called
split layers                  run as they are
while a model is measured     nothing is compiled
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, called from compiled code as from any other."""
    called: Callable[P, T] = torch.compiler.disable(function)
    return called


def untraced_forward(forward: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that torch.compile passes over with a warning.

    Args:
        forward: what runs.
        like: whose name and signature it shows.
    """
    run, say = untraced(forward), untraced(_say_passed_over)

    @functools.wraps(like)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            say()
        return run(*args, **kwargs)

    return wrapped


def _say_passed_over() -> None:
    warnings.warn(
        "poolrt: a pooled model is not compiled as a whole, its forward runs as it is; to have its layers compiled, "
        "call compile() on each of them",
        stacklevel=2,
    )


def nothing_compiled() -> AbstractContextManager[Any]:
    """A block in which everything that was given to torch.compile runs as it is."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def behind_compile(model: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` stands for; any other is itself."""
    original = model.__dict__.get("_modules", {}).get("_orig_mod")
    return model if original is None else original
