"""A region on the host with random weights in fp64: what discovery asks, and what a rewrite must equal.

Random weights make every dependence show as a gradient that is not zero, and fp64 makes "equal" sharp. The module
itself is only read: its parameters are replaced for the length of a call.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from poolrt.runtime.state.trees import Tree, flatten

Call = tuple[tuple[Any, ...], dict[str, Any]]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5}
"""largest difference, relative to the largest value, that reordered sums explain; by the coarsest dtype in between"""


_NOISE = 0.5
"""added to inputs"""
_MASKED = 1e4
"""numbers that are larger say which entries do not count"""
_LARGEST = 1e38
_PIECE = 1 << 17
"""entries that are compared at once"""


class Chain(nn.Module):
    """A module and the linear layer that reads its first output."""

    def __init__(self, column: nn.Module, row: nn.Module) -> None:
        super().__init__()
        self.column, self.row = column, row
        self.training = column.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The linear layer's output, with what else the module returned."""
        output = self.column(*args, **kwargs)
        return (self.row(output[0]), *output[1:]) if isinstance(output, tuple) else self.row(output)


class RegionProbe:
    """One module, one call of it, and random weights in their place."""

    def __init__(self, module: nn.Module, call: Call, dtype: torch.dtype = torch.float64) -> None:
        self.module, self.dtype = module, dtype
        self._random = torch.Generator().manual_seed(0)
        self.parameters = {
            name: torch.empty(parameter.shape, dtype=dtype).requires_grad_()
            for name, parameter in module.named_parameters(remove_duplicate=False)
        }
        self.buffers = {name: self._converted(buffer) for name, buffer in module.named_buffers(remove_duplicate=False)}
        self.redraw()
        self.call, self.inputs = self._prepared(call)

    @functools.cached_property
    def tolerance(self) -> float:
        """For comparing outputs and gradients: many norms and softmaxes compute in fp32 whatever they are given."""
        narrow = _NarrowResults()
        with torch.no_grad(), narrow:
            self.run()
        return TOLERANCE[torch.float32 if narrow.found else self.dtype]

    def redraw(self) -> None:
        """Other random weights."""
        with torch.no_grad():
            for weight in self.parameters.values():
                weight.normal_(generator=self._random)
                if weight.dim() > 1:
                    weight.div_(weight.shape[-1] ** 0.5)

    def run(self, replaced: Mapping[str, Tensor] | None = None) -> Tree:
        """The module's output, taken apart, with `replaced` in place of some weights."""
        return self.run_call(self.call, replaced)

    def run_call(self, call: Call, replaced: Mapping[str, Tensor] | None = None) -> Tree:
        """The same for another call than the probed one."""
        weights = {**self.parameters, **self.buffers, **(replaced or {})}
        args, kwargs = call
        with watchable():
            return flatten(functional_call(self.module, weights, args, kwargs, tie_weights=False))

    def first(self, replaced: Mapping[str, Tensor] | None = None) -> Tensor:
        """The first tensor of the output."""
        return self.run(replaced).tensors[0]

    def weighting(self, output: Tensor) -> Tensor:
        """A random gradient for an output."""
        return torch.randn(output.shape, generator=self._random, dtype=output.dtype)

    def _prepared(self, call: Call) -> tuple[Call, dict[str, Tensor]]:
        """The call on the host in this dtype, without objects that keep state; and its tensors of numbers as leaves."""
        args, kwargs = call
        tree = flatten((tuple(map(without_state, args)), {name: without_state(kwargs[name]) for name in kwargs}))
        tensors = [self._varied(self._converted(leaf.tensor)) for leaf in tree.leaves]
        paths = [leaf.path for leaf in tree.leaves]
        inputs = {
            path: tensor.requires_grad_()
            for path, tensor in zip(paths, tensors, strict=True)
            if tensor.is_floating_point()
        }
        return tree.rebuild(tensors), inputs

    def _varied(self, tensor: Tensor) -> Tensor:
        """Numbers with noise, so that no two tokens are alike.

        What is as large as a mask's minus infinity stays out of play, but finite in fp32 too: code that computes a
        softmax in fp32 would otherwise find rows with no entry at all.
        """
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.nan_to_num(nan=0.0).clamp(-_LARGEST, _LARGEST)
        noise = torch.randn(tensor.shape, generator=self._random, dtype=tensor.dtype) * _NOISE
        return torch.where(tensor.abs() < _MASKED, tensor + noise, tensor)

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def without_state(value: Any) -> Any:
    """None in place of an object that keeps state between calls (a cache): a probe starts from nothing."""
    return None if flatten(value).has_state else value


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """The module and all in it without dropout, as they were afterwards."""
    modes = [(inner, inner.training) for inner in module.modules()]
    for inner, _ in modes:
        inner.training = False
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


class _NarrowResults(TorchDispatchMode):
    """Sees whether an operation gives numbers with fewer digits than fp64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                self.found = True
        return result


@contextmanager
def watchable() -> Iterator[None]:
    """Without torch's fused inference path, which calls no inner module; warnings are for the user's own runs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def differs(expected: Tensor, actual: Tensor, tolerance: float, floor: float = 1e-3) -> bool:
    """Whether two tensors differ by more than `tolerance` of the largest value; below `floor` that counts instead."""
    if expected.shape != actual.shape:
        return True
    if not expected.is_floating_point():
        return not torch.equal(expected, actual)
    pairs = list(zip(_in_pieces(expected), _in_pieces(actual), strict=True))
    scale = max((_largest_finite(mine) for mine, _ in pairs), default=0.0)
    allowed = tolerance * max(floor, scale)
    return not all(torch.allclose(mine, theirs, rtol=0.0, atol=allowed, equal_nan=True) for mine, theirs in pairs)


def largest_of(tensors: Iterable[Tensor | None]) -> float:
    """The largest finite size of a value in any of the tensors; 0 where there is none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return max((_largest_finite(piece) for tensor in present for piece in _in_pieces(tensor)), default=0.0)


def _in_pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A comparison makes temporaries of the size of what is compared."""
    if tensor.dim() == 0 or not tensor.numel():
        return (tensor.detach(),) if tensor.numel() else ()
    return tensor.detach().split(max(1, _PIECE * len(tensor) // tensor.numel()))


def _largest_finite(tensor: Tensor) -> float:
    return float(torch.where(torch.isfinite(tensor), tensor.abs(), 0).max())
