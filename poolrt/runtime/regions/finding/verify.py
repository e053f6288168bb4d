"""Proof of a rewrite: forward and backward, whole against split, with random weights, before it is used.

    whole:  output, gradient of every input and weight, what is put into a cache         on the host
    split:  the same from pieces, on the cards; the cache read whole                     equal, as reordered sums are

The module is only read; weights, buffers and inputs are copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.cache_heads import NotedCache, with_cache
from poolrt.runtime.regions.finding.probe import Call, RegionProbe, differs, evaluated, largest_of
from poolrt.runtime.regions.plan import Forked, Rewrite, parameter_splits
from poolrt.runtime.regions.replica import put_buffers, put_parameters, replicate
from poolrt.runtime.regions.running.build import split_forward
from poolrt.runtime.regions.running.forked import gathered, sliced
from poolrt.runtime.state.paths import joined
from poolrt.runtime.state.trees import Tree, flatten

AT_ONCE_NBYTES = 16 << 20
"""gradients that are held together; larger weights are compared one after another, each in a backward of its own"""
_BLIND = 1e-3
"""gradients this much smaller than the largest are compared to that one: a bias of keys has rounding only"""


def difference(
    module: nn.Module,
    call: Call,
    rewrites: Sequence[Rewrite],
    devices: Sequence[torch.device],
    dtype: torch.dtype = torch.float64,
) -> str | None:
    """Where `module` with these rewrites differs from `module` as it is; None if nowhere.

    Args:
        module: what is called.
        call: its arguments; objects that keep state (caches) are left out.
        rewrites: their modules are named from `module`.
        devices: of the cards; the first is the lead card's.
        dtype: in which it is computed; fp64 shows small errors best.
    """
    with evaluated(module):
        probe = RegionProbe(module, call, dtype)
        comparison = _Comparison(probe, rewrites, devices)
        try:
            return comparison.first_difference()
        finally:
            comparison.let_go()


class _Comparison:
    def __init__(self, probe: RegionProbe, rewrites: Sequence[Rewrite], devices: Sequence[torch.device]) -> None:
        self._probe, self._lead = probe, devices[0]
        self._splits = {
            joined(rewrite.module, name): split
            for rewrite in rewrites
            for name, split in parameter_splits(rewrite).items()
        }
        self._pieces = {name: self._cut(name, split, devices) for name, split in self._splits.items()}
        self._whole_weights = {
            name: weight.detach().to(self._lead).requires_grad_()
            for name, weight in probe.parameters.items()
            if name not in self._splits
        }
        self._split_module = self._rewritten(rewrites, devices)
        self._cache_arguments = [r.cache.argument for r in rewrites if isinstance(r, Forked) and r.cache is not None]
        self._split_call, self._split_inputs = self._call_on_lead()

    def first_difference(self) -> str | None:
        """Outputs first, then gradients, a group at a time."""
        try:
            whole, split = self._probe.run(), self._run_split()
        except Exception as error:  # the split may hand the region's Python what it cannot take
            return f"it fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        problem = self._outputs_differ(whole, split)
        del split
        weightings = {
            place: self._probe.weighting(tensor) for place, tensor in enumerate(whole.tensors) if tensor.requires_grad
        }
        del whole
        if problem is None and not weightings:
            problem = "no output of it can be differentiated"
        for names in self._groups():
            problem = problem or self._gradients_differ(names, weightings)
        for argument in self._cache_arguments:
            problem = problem or self._caches_differ(argument)
        return problem

    def let_go(self) -> None:
        """Break the circle of a module and its forward, which would keep the weights until it is collected."""
        for module in self._split_module.modules():
            module.__dict__.pop("forward", None)

    # ---- the split module

    def _cut(self, name: str, split: Split, devices: Sequence[torch.device]) -> list[Tensor]:
        weight = self._probe.parameters[name].detach()
        return [sliced(weight, split, card).to(device).requires_grad_() for card, device in enumerate(devices)]

    def _rewritten(self, rewrites: Sequence[Rewrite], devices: Sequence[torch.device]) -> nn.Module:
        clone = replicate(self._probe.module)
        put_parameters(clone, {**self._probe.parameters, **self._whole_weights})
        put_buffers(clone, {name: buffer.to(self._lead, copy=True) for name, buffer in self._probe.buffers.items()})
        names = {id(self._probe.parameters[name]): name for name in self._splits}
        for rewrite in rewrites:
            module = clone.get_submodule(rewrite.module)
            forward = split_forward(module, rewrite, devices, lambda parameter: self._pieces[names[id(parameter)]])
            module.__dict__["forward"] = forward
        return clone

    def _call_on_lead(self) -> tuple[Any, dict[str, Tensor]]:
        tree = flatten(self._probe.call)
        copies = [leaf.tensor.detach().to(self._lead, copy=True) for leaf in tree.leaves]
        inputs = {
            leaf.path: copy.requires_grad_()
            for leaf, copy in zip(tree.leaves, copies, strict=True)
            if leaf.path in self._probe.inputs
        }
        return tree.rebuild(copies), inputs

    def _run_split(self) -> Tree:
        args, kwargs = self._split_call
        return flatten(self._split_module(*args, **kwargs))

    # ---- comparing

    def _outputs_differ(self, whole: Tree, split: Tree) -> str | None:
        if [leaf.path for leaf in whole.leaves] != [leaf.path for leaf in split.leaves]:
            return "it returns other tensors"
        for leaf, tensor in zip(whole.leaves, split.tensors, strict=True):
            if differs(leaf.tensor.detach(), tensor.detach().cpu(), self._probe.tolerance):
                return f"its output {leaf.path or 'tensor'} differs"
        return None

    def _caches_differ(self, argument: str) -> str | None:
        whole, split = NotedCache(), NotedCache()
        args, kwargs = with_cache(self._split_call, argument, split)
        with torch.no_grad():
            self._probe.run_call(with_cache(self._probe.call, argument, whole))
            self._split_module(*args, **kwargs)
        for name in ("keys", "values"):
            mine, theirs = (getattr(cache.layers[0], name) for cache in (whole, split))
            if differs(mine, theirs.cpu(), self._probe.tolerance):
                return f"the {name} in its cache differ"
        return None

    def _groups(self) -> list[list[str]]:
        """Names of weights and inputs whose gradients are compared together."""
        tensors = {**self._probe.parameters, **{f"input {k}": v for k, v in self._probe.inputs.items()}}
        large = [name for name, tensor in tensors.items() if tensor.nbytes > AT_ONCE_NBYTES]
        small = [name for name in tensors if name not in large]
        return [*([small] if small else []), *([name] for name in large)]

    def _gradients_differ(self, names: Sequence[str], weightings: Mapping[int, Tensor]) -> str | None:
        whole = self._whole_gradients(names, weightings)
        split = self._split_gradients(names, weightings)
        largest = largest_of(whole)
        for name, expected, gradients in zip(names, whole, split, strict=True):
            pairs = self._side_by_side(name, expected, gradients)
            if any(differs(mine, theirs, self._probe.tolerance, floor=_BLIND * largest) for mine, theirs in pairs):
                return f"the gradient of {name} differs"
        return None

    def _side_by_side(
        self, name: str, whole: Tensor | None, gradients: Sequence[Tensor | None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole gradient and what the cards have of it: piece by piece, or added up where pieces overlap."""
        like = self._tensor(name)
        expected = torch.zeros_like(like) if whole is None else whole
        split = self._splits.get(name)
        if split is None:
            yield expected, torch.zeros_like(like) if gradients[0] is None else gradients[0].cpu()
            return
        pieces = [
            torch.zeros(sliced(expected, split, card).shape, dtype=expected.dtype) if piece is None else piece.cpu()
            for card, piece in enumerate(gradients)
        ]
        if not split.is_disjoint:
            yield expected, gathered(pieces, split, expected)
            return
        for card, piece in enumerate(pieces):
            yield sliced(expected, split, card), piece

    def _tensor(self, name: str) -> Tensor:
        inputs = self._probe.inputs
        return inputs[name.removeprefix("input ")] if name.startswith("input ") else self._probe.parameters[name]

    def _whole_gradients(self, names: Sequence[str], weightings: Mapping[int, Tensor]) -> Sequence[Tensor | None]:
        outputs = self._probe.run().tensors
        roots = [outputs[place] for place in weightings]
        wanted = [self._tensor(name) for name in names]
        return torch.autograd.grad(roots, wanted, list(weightings.values()), allow_unused=True)

    def _split_gradients(
        self, names: Sequence[str], weightings: Mapping[int, Tensor]
    ) -> Sequence[Sequence[Tensor | None]]:
        outputs = self._run_split().tensors
        pairs = [(outputs[place], given) for place, given in weightings.items() if outputs[place].requires_grad]
        wanted = [self._split_tensors(name) for name in names]
        flat = [tensor for tensors in wanted for tensor in tensors]
        roots, given = [root for root, _ in pairs], [weighting.to(root.device) for root, weighting in pairs]
        found = iter(torch.autograd.grad(roots, flat, given, allow_unused=True) if roots else [None] * len(flat))
        return [[next(found) for _ in tensors] for tensors in wanted]

    def _split_tensors(self, name: str) -> Sequence[Tensor]:
        if name.startswith("input "):
            return [self._split_inputs[name.removeprefix("input ")]]
        return self._pieces[name] if name in self._splits else [self._whole_weights[name]]
