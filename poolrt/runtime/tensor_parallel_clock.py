"""How long steps take whose backward is torch's own: from the first gradient of an output till the engine is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from poolrt.runtime.regions.running.parted import Parted


class StepClock:
    """Collects the seconds of steps."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        """of each step so far, forward and backward together; as the host sees them: a GPU may still be at work"""

    @contextmanager
    def forward(self) -> Iterator[_Step]:
        """Times the forward that runs inside; its step counts once its backward has passed."""
        step = _Step(self.step_s)
        started = time.perf_counter()
        yield step
        step.forward_s = time.perf_counter() - started


class _Step:
    def __init__(self, done: list[float]) -> None:
        self.forward_s = 0.0
        self._done = done
        self._started: float | None = None

    def watch(self, outputs: Sequence[Tensor]) -> None:
        """Have backward noted when it reaches the first of these."""
        if not torch.is_grad_enabled():
            return
        for output in outputs:
            for tensor in (output.parts or ()) if isinstance(output, Parted) else (output,):
                if tensor.requires_grad:
                    tensor.register_hook(self._begin)

    def _begin(self, gradient: Tensor) -> None:
        if self._started is None:
            self._started = time.perf_counter()
            # torch has no public way to be told of the end of a backward; DistributedDataParallel uses this one.
            torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        if self._started is not None:
            self._done.append(self.forward_s + time.perf_counter() - self._started)
            self._started = None
