"""Tensors that a forward keeps on its modules for a while: lanes would overwrite each other's.

self.mask = mask                 micro-batch 0 writes
x = layer(x)                     ... and while it waits for a card, micro-batch 1 writes
x = x * self.mask                micro-batch 0 reads what is not its own
self.mask = None                 afterwards there is nothing to be seen
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from poolrt.runtime.state.paths import joined

_one_at_a_time = threading.Lock()


class AttributeWatch:
    """The attributes that were set to a tensor while it was active."""

    def __init__(self) -> None:
        self._seen: dict[tuple[nn.Module, str], None] = {}

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        """`module.name = value` is about to happen."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self._seen[module, name] = None

    def gone(self, model: nn.Module) -> str | None:
        """The path of an attribute of `model` that held a tensor and does not any more; None if there is none."""
        paths = {module: path for path, module in model.named_modules()}
        for module, name in self._seen:
            if module in paths and not isinstance(getattr(module, name, None), Tensor):
                return joined(paths[module], name)
        return None


@contextmanager
def attributes_watched() -> Iterator[AttributeWatch]:
    """Watch every module of the process; whoever comes second waits."""
    watch = AttributeWatch()
    with _one_at_a_time:
        set_attribute = nn.Module.__setattr__

        def watching(module: nn.Module, name: str, value: Any) -> None:
            watch.note(module, name, value)
            set_attribute(module, name, value)

        nn.Module.__setattr__ = watching  # type: ignore[method-assign, assignment]
        try:
            yield watch
        finally:
            nn.Module.__setattr__ = set_attribute  # type: ignore[method-assign]
