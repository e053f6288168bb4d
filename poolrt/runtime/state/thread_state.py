"""What a new thread does not inherit from its parent and a forward can notice: carried into every lane."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as _push_dispatch_mode

from poolrt.transfer.streams import current_stream, working_in

T = TypeVar("T")


class ThreadState:
    """Grad mode, inference mode, autocast, modes, saved-tensor hooks and context variables of the thread that makes it.

    Without it bf16 autocast silently becomes fp32 in a new thread, and no_grad builds a graph. Of `devices` the current
    streams are carried too: what the caller has just given them would otherwise not be waited for.
    """

    def __init__(self, device_types: tuple[str, ...], devices: Iterable[torch.device] = ()) -> None:
        cards = dict.fromkeys(device for device in devices if device.type != "cpu")
        self._streams = [current_stream(device) for device in cards]
        self._context = contextvars.copy_context()
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in ("cpu", *device_types)
        ]
        self._autocast_cache = torch.is_autocast_cache_enabled()
        self._function_modes = _get_current_function_mode_stack()
        self._dispatch_modes = _get_current_dispatch_mode_stack()
        self._saved_tensor_hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` in this thread as if in the thread that made this state; backward stays in this thread."""

        def inside() -> T:
            with ExitStack() as stack:
                self._enter(stack)
                return function()

        return self._context.copy().run(inside)

    def _enter(self, stack: ExitStack) -> None:
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for kind, dtype, enabled in self._autocast:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self._autocast_cache))
        if self._inference:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.set_grad_enabled(self._grad))
        for stream in self._streams:
            if current_stream(stream.device) != stream:
                stack.enter_context(working_in(stream))
        if self._saved_tensor_hooks is not None:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*self._saved_tensor_hooks))
        for mode in self._dispatch_modes:
            stack.enter_context(_again(mode, _push_dispatch_mode, lambda: _pop_dispatch_mode()))
        for mode in self._function_modes:
            stack.enter_context(_again(mode, _push_function_mode, _pop_function_mode))


@contextmanager
def _again(mode: Any, push: Callable[[Any], Any], pop: Callable[[], Any]) -> Iterator[None]:
    """Activate a mode that is active elsewhere: its own __enter__ keeps books that several threads would spoil."""
    push(mode)
    try:
        yield
    finally:
        pop()
