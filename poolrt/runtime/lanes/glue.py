"""Glue: the code between two placed layers. It may meet tensors of several cards; here they are brought together.

One function mode per lane watches glue code only; it is off inside layers, where the hot path is. It moves the
tensors of one operation to one card, and tells every scalar how it was made (merge_rule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from poolrt.runtime.batches.merge_rule import tell
from poolrt.runtime.lanes.crossing import Crossings

# Moving tensors is what these are for: they may well name two devices.
_MAY_MIX: set[Callable[..., Any]] = {
    Tensor.to,
    Tensor.copy_,
    Tensor.type,
    Tensor.type_as,
    Tensor.set_,
    Tensor.data.__set__,  # type: ignore[attr-defined]
    torch._VF._pack_padded_sequence,  # these two want the lengths on the host
    torch._VF._pad_packed_sequence,
}
_IN_PLACE_NAMES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"}


class Glue(TorchFunctionMode):
    """Brings the tensors of one operation to one card: the lane's, or that of the tensor an operation changes."""

    def __init__(self, crossings: Crossings, here: Callable[[], torch.device | None]) -> None:
        super().__init__()
        self._crossings = crossings
        self._here = here

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` with its tensors on one card."""
        kwargs = kwargs or {}
        if self._crossings.any_changed:
            args, kwargs = self._crossings.current_all((args, kwargs))
        if func in _MAY_MIX or not _mixes(_tensors(args, kwargs)):
            return tell(func, args, kwargs, func(*args, **kwargs))
        device = self._meeting_place(func, args, kwargs)
        moved_args, moved_kwargs = self._crossings.move_all((args, kwargs), device)
        return tell(func, args, kwargs, func(*moved_args, **moved_kwargs))

    def _meeting_place(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        if isinstance(kwargs.get("out"), Tensor):
            return kwargs["out"].device
        name = getattr(func, "__name__", "")
        changes_first = name in _IN_PLACE_NAMES or (name.endswith("_") and not name.endswith("__"))
        here = self._here()
        if (changes_first and isinstance(args[0], Tensor)) or here is None:
            first: Tensor = args[0] if args and isinstance(args[0], Tensor) else next(_tensors(args, kwargs))
            return first.device
        return here


def pause(glue: Glue) -> bool:
    """Switch `glue` off in this thread if it is the innermost mode; whether it was."""
    if torch._C._len_torch_function_stack() > 0 and _innermost() is glue:
        _pop_mode()
        return True
    return False


def resume(glue: Glue) -> None:
    """Switch `glue` on again after `pause` said True."""
    _push_mode(glue)


def _innermost() -> Any:
    return torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1)


def _tensors(args: Iterable[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, {})


def _mixes(tensors: Iterator[Tensor]) -> bool:
    """Whether the tensors lie on several devices. Also a scalar on the host counts: not every operation takes one."""
    device: torch.device | None = None
    for tensor in tensors:
        if device is not None and tensor.device != device:
            return True
        device = tensor.device
    return False
