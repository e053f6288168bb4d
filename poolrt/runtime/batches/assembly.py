"""Whole outputs put together by the lanes, each as it ends: copies cost nothing while other cards still work."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from poolrt.runtime.batches.microbatch import OutputRule, carry_output
from poolrt.runtime.state.trees import Tree


class Assembly:
    """Takes the parts of outputs that are concatenated on another device than the one they were computed on.

    Args:
        rules: how outputs come together.
        sizes: samples of each micro-batch.
        device: where the whole outputs go.
    """

    def __init__(self, rules: Sequence[OutputRule], sizes: Sequence[int], device: torch.device) -> None:
        self._rules = rules
        self._sizes = tuple(sizes)
        self._device = device
        self._wholes: dict[int, Tensor] = {}
        self._filled: Counter[int] = Counter()
        self._lock = threading.Lock()

    def put(self, micro_batch: int, outputs: Tree) -> None:
        """Copy what one micro-batch adds; what does not fit the rules is left for `gather` to judge."""
        if len(outputs.leaves) != len(self._rules):
            return
        for index, (rule, leaf) in enumerate(zip(self._rules, outputs.leaves, strict=True)):
            if rule.kind == "concatenate" and not leaf.in_state and leaf.tensor.device != self._device:
                self._copy(index, rule.dim, micro_batch, leaf.tensor.detach())

    def _copy(self, index: int, dim: int, micro_batch: int, part: Tensor) -> None:
        rows, rest = divmod(part.shape[dim], self._sizes[micro_batch])
        whole = self._whole(index, dim, rows, part)
        expected = [size for d, size in enumerate(whole.shape) if d != dim]
        if rest or whole.shape[dim] != rows * sum(self._sizes) or whole.dim() != part.dim():
            return
        if [size for d, size in enumerate(part.shape) if d != dim] != expected:
            return
        carry_output(part, whole.narrow(dim, rows * sum(self._sizes[:micro_batch]), part.shape[dim]))
        with self._lock:
            self._filled[index] += 1

    def _whole(self, index: int, dim: int, rows: int, part: Tensor) -> Tensor:
        with self._lock:
            if index not in self._wholes:
                shape = list(part.shape)
                shape[dim] = rows * sum(self._sizes)
                self._wholes[index] = torch.empty(shape, dtype=part.dtype, device=self._device)
            return self._wholes[index]

    def complete(self) -> Mapping[int, Tensor]:
        """The outputs, by index, to which every micro-batch has added its part."""
        return {index: whole for index, whole in self._wholes.items() if self._filled[index] == len(self._sizes)}
