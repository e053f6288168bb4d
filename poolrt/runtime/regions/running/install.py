"""Puts a plan's rewrites on a model's modules, and takes them off again. Objects, classes and the tree stay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.runtime.regions.plan import RegionPlan
from poolrt.runtime.regions.running.build import SplitForward, split_forward
from poolrt.runtime.regions.running.traffic import Traffic
from poolrt.runtime.state.compiled import untraced
from poolrt.runtime.state.slot import Slot

Pieces = Callable[[Tensor], Sequence[Tensor]]


class Installed:
    """A model whose regions run split; `uninstall` makes it as it was."""

    def __init__(
        self,
        model: nn.Module,
        plan: RegionPlan,
        devices: Sequence[torch.device],
        pieces: Pieces,
        traffic: Traffic | None = None,
    ) -> None:
        self.forwards: dict[str, SplitForward] = {}
        """by the module's name"""
        self.traffic = traffic or Traffic()
        """the copies that they make between cards"""
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        rewrites = [rewrite for region in plan.regions for rewrite in region.rewrites]
        modules = [model.get_submodule(rewrite.module) for rewrite in rewrites]
        for rewrite, module in zip(rewrites, modules, strict=True):
            if "forward" in module.__dict__:
                raise ModelError(f"{rewrite.module} cannot be split: its forward was replaced by other code")
            self.forwards[rewrite.module] = split_forward(module, rewrite, devices, pieces, self.traffic)
        for rewrite, module in zip(rewrites, modules, strict=True):
            forward = self.forwards[rewrite.module]
            self._put(module.__dict__, "forward", functools.wraps(module.forward)(untraced(_call(forward))))
        _leave_fast_path(model, self._put)

    def slots(self) -> list[Slot]:
        """Where the forwards read pieces, and where parameters that are applied on the lead card alone."""
        return [slot for forward in self.forwards.values() for slot in forward.slots()]

    def uninstall(self) -> None:
        """The modules run their own forward again."""
        for holder, name, value in reversed(self._undo):
            if value is _ABSENT:
                holder.pop(name, None)
            else:
                holder[name] = value
        self._undo.clear()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """The model as it was, for a while: to copy or to store it."""
        taken, self._undo = self._undo, list(self._undo)
        values = [(holder, name, holder[name]) for holder, name, _ in taken]
        self.uninstall()
        try:
            yield
        finally:
            for holder, name, value in values:
                holder[name] = value
            self._undo = taken

    def _put(self, holder: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((holder, name, holder.get(name, _ABSENT)))
        holder[name] = value


_ABSENT = object()


def _call(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*args, **kwargs)


def _leave_fast_path(model: nn.Module, put: Callable[[dict[str, Any], str, Any], None]) -> None:
    """Torch's fused inference path of an encoder layer reads the layers' weights and calls none of them."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _is_split(module):
            put(module.__dict__, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder) and _is_split(module):
            put(module.__dict__, "use_nested_tensor", False)


def _is_split(module: nn.Module) -> bool:
    return any("forward" in inner.__dict__ for inner in module.modules())
