"""The probe: one forward of a real batch, layer by layer, that measures what the planner needs and keeps nothing.

    before a layer   cut the graph: its inputs become leaves
    the layer runs   time, bytes saved for backward, peak of the forward
    after it         its own backward runs at once (gradients of ones): time, peak; then the outputs are cut again
    glue             is charged to the call before it; its backward runs at the end

So only one layer's activations exist at a time, and nothing of the user's changes: gradients go to no parameter,
buffers and generators are put back by the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.planning.profile import CallFacts
from poolrt.runtime.batches.microbatch import Call
from poolrt.runtime.lanes.crossing import Crossings
from poolrt.runtime.lanes.glue import Glue
from poolrt.runtime.lanes.hooks import Mover, hooked
from poolrt.runtime.lanes.lane import current
from poolrt.runtime.lanes.sever import sever
from poolrt.runtime.measuring.measured_call import MeasuredCall, settle
from poolrt.runtime.state.layers import Layer
from poolrt.runtime.state.memory_watch import MemoryWatch, SavedBytes, granular
from poolrt.runtime.state.trees import flatten, map_tensors


def _structure(module: nn.Module) -> Hashable:
    return type(module), tuple((name, tuple(p.shape), p.dtype) for name, p in module.named_parameters())


@dataclass
class Probed:
    """What the probe saw."""

    calls: list[CallFacts]
    output_nbytes: int
    returns_loss: bool = False
    """whether an output is a scalar to start a backward from"""
    unreached: list[Layer] = field(default_factory=list)
    """layers with children that were called although the layer itself never was"""

    @property
    def total_s(self) -> float:
        """Seconds of all calls, forward and backward."""
        return sum(call.forward_s + call.backward_s for call in self.calls)

    def faster_of(self, other: Probed) -> Probed:
        """Each call with its shorter times of two probes; a machine is sometimes slower than it is, never faster."""
        if [call.layer for call in self.calls] != [call.layer for call in other.calls]:
            return self
        calls = [
            replace(
                mine,
                forward_s=min(mine.forward_s, theirs.forward_s),
                backward_s=min(mine.backward_s, theirs.backward_s),
                accumulate_s=min(mine.accumulate_s, theirs.accumulate_s),
            )
            for mine, theirs in zip(self.calls, other.calls, strict=True)
        ]
        return replace(self, calls=calls)


def probe(model: nn.Module, forward: Callable[..., Any], layers: Sequence[Layer], call: Call, move: Mover) -> Probed:
    """Measure one forward and backward of `model` on `call`, wherever its layers lie.

    Runs in the calling thread; the caller restores buffers and generators.
    """
    walker = _ProbeWalker(model, layers, move)
    called: set[nn.Module] = set()
    watchers = [
        child.register_forward_pre_hook(lambda module, args: called.add(module))
        for layer in layers
        for child in layer.module.modules()
    ]
    try:
        with hooked(layers, move):
            output = walker.run(forward, call)
    finally:
        for watcher in watchers:
            watcher.remove()
    unreached = [
        layer
        for layer in layers
        if layer.module not in called and any(child in called for child in layer.module.modules())
    ]
    output_nbytes = walker.end_output_nbytes(output)
    return Probed(
        calls=[measured.facts() for measured in walker.calls],
        output_nbytes=output_nbytes,
        returns_loss=bool(_losses(output)),
        unreached=unreached,
    )


class _ProbeWalker:
    """The walker of a probe: measures each layer's call between `before` and `after`, and the glue in between."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], move: Mover) -> None:
        self._model = model
        self._names = {layer.module: layer.name for layer in layers}
        self._move = move
        self._watch = MemoryWatch()
        self._saved = SavedBytes({t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())})
        self._glue_outputs: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._saved_before = 0
        self._live_before = 0
        self._operations_before = 0
        self._started = 0.0
        self._here: torch.device | None = None
        self._accumulate_s = 0.0
        self.calls: list[MeasuredCall] = []

    def run(self, forward: Callable[..., Any], call: Call) -> Any:
        current.walker = self
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        glue = Glue(Crossings(), lambda: self._here)
        try:
            with torch.autograd.set_multithreading_enabled(False), torch.enable_grad(), hooks, self._watch, glue:
                self._begin_segment()
                output = self._forward(forward, call)
                self._end_glue()
                settle(self.calls)
                self._backward_of_glue(output)
        finally:
            current.walker = None
        return output

    def _forward(self, forward: Callable[..., Any], call: Call) -> Any:
        """A model that is its own layer is not called, so no hook tells of it."""
        if self._model not in self._names:
            return forward(*call[0], **call[1])
        args, kwargs = self.before(self._model, *call)
        return self.after(self._model, forward(*args, **kwargs))

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._end_glue()
        self._watch.chapter = len(self.calls)
        (args, kwargs), self._inputs = _cut(self._move(layer, (args, kwargs)))
        self.calls.append(MeasuredCall(self._names[layer], _structure(layer)))
        for tensor in self._inputs:
            self._saved.count(tensor)
        self._begin_segment()
        return args, kwargs

    def after(self, layer: nn.Module, output: Any) -> Any:
        measured = self.calls[-1]
        self._synchronize(layer)
        measured.forward_s += time.perf_counter() - self._started
        measured.saved_nbytes += self._saved.nbytes - self._saved_before
        measured.operations += self._watch.operations - self._operations_before
        # While the graph lives, what is live is kept: saved values and the output itself.
        kept = self._watch.live_nbytes()
        measured.forward_workspace_nbytes = max(0, self._watch.peak - max(kept, self._live_before))
        tensors = flatten(output).tensors
        measured.output_nbytes = sum(t.nbytes for t in tensors if t.is_floating_point())
        self._backward_of_layer(layer, tensors, measured)
        cut, self._glue_outputs = _cut(output)
        self._here = next(layer.parameters()).device
        self._begin_segment()
        return cut

    def end_output_nbytes(self, output: Any) -> int:
        """Bytes of the outputs that the last call leaves; what an earlier call made of them is charged to that call.

        A cache of keys and values is such an output: each part of it stays, till backward has passed, on the card of
        the layer that filled it, also where autograd keeps nothing of it.
        """
        at_end, seen = 0, set()
        for tensor in flatten(output, into_state=True).tensors:
            chapter = self._watch.chapter_of(tensor)
            storage = tensor.untyped_storage()
            if chapter is None or chapter >= len(self.calls) - 1:
                at_end += tensor.nbytes
            elif storage._cdata not in seen and not self._saved.has(tensor):
                self.calls[chapter].saved_nbytes += granular(storage.nbytes())
                seen.add(storage._cdata)
        return at_end

    # ---- segments of the forward

    def _begin_segment(self) -> None:
        self._saved_before = self._saved.nbytes
        self._live_before = self._watch.mark()
        self._operations_before = self._watch.operations
        self._started = time.perf_counter()

    def _end_glue(self) -> None:
        """Charge what happened since the last layer to that layer's call."""
        if not self.calls:
            return
        measured = self.calls[-1]
        measured.glue_s += time.perf_counter() - self._started
        saved = self._saved.nbytes - self._saved_before
        measured.saved_nbytes += saved
        measured.glue_saved_nbytes += saved
        measured.operations += self._watch.operations - self._operations_before
        peak = self._watch.peak - max(self._watch.live_nbytes(), self._live_before)
        measured.forward_workspace_nbytes = max(measured.forward_workspace_nbytes, peak)

    def _pack(self, tensor: Tensor) -> Tensor:
        self._saved.count(tensor)
        return tensor.detach()  # the tensor itself could be the output of the node that saves it: a cycle never freed

    # ---- backward, one piece at a time

    def _backward_of_layer(self, layer: nn.Module, outputs: Sequence[Tensor], measured: MeasuredCall) -> None:
        wanted = [*self._inputs, *(p for p in layer.parameters() if p.requires_grad)]
        started = time.perf_counter()
        workspace = self._differentiate(outputs, wanted, len(self._inputs))
        self._synchronize(layer)
        adding_s = self._accumulate_s / WRITE_AND_ADD  # was measured inside, and is no part of backward
        measured.backward_s += max(0.0, time.perf_counter() - started - adding_s)
        measured.backward_workspace_nbytes = max(measured.backward_workspace_nbytes, workspace)
        measured.accumulate_s += self._accumulate_s

    def _backward_of_glue(self, output: Any) -> None:
        if not self.calls or not self._glue_outputs:
            return
        measured = self.calls[-1]
        started = time.perf_counter()
        roots = _losses(output) or flatten(output).tensors
        workspace = self._differentiate(roots, self._glue_outputs, len(self._glue_outputs))
        measured.backward_s += time.perf_counter() - started
        measured.glue_workspace_nbytes = workspace

    def _differentiate(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor], activations: int) -> int:
        """Backward from gradients of ones; the peak above what was live, less the gradients of parameters.

        The first `activations` of `wanted` are inputs, the rest parameters.
        """
        self._accumulate_s = 0.0
        roots = [t for t in outputs if t.requires_grad and t.grad_fn is not None]
        if not roots or not wanted:
            return 0
        before = self._watch.mark()
        ones = [torch.ones_like(t) for t in roots]
        try:
            gradients = torch.autograd.grad(roots, wanted, ones, allow_unused=True, retain_graph=False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a part of its graph belongs to another layer (a shared cache) and is gone already
            return 0
        workspace = self._watch.peak
        self._accumulate_s = _seconds_to_add([g for g in gradients[activations:] if g is not None])
        of_parameters = sum(g.nbytes for g in gradients[activations:] if g is not None)
        return max(0, workspace - before - of_parameters)

    def _synchronize(self, layer: nn.Module) -> None:
        device = next(layer.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


WRITE_AND_ADD = 2
"""writing and adding a gradient over adding it: what a micro-batch more pays"""


def _cut(value: Any) -> tuple[Any, list[Tensor]]:
    """`value` without its history, and the leaves that now collect the gradients of the tensors that wanted one."""
    leaves: list[Tensor] = []

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        leaf, severed = sever(tensor)
        leaves.append(leaf)
        return severed

    return map_tensors(value, cut), leaves


def _seconds_to_add(gradients: Sequence[Tensor]) -> float:
    """Seconds to write gradients of these sizes and add them to others: taken as twice what adding takes."""
    dense = [g for g in gradients if g.layout == torch.strided and g.is_contiguous()]
    if not dense:
        return 0.0
    started = time.perf_counter()
    torch._foreach_add_(dense, dense)
    return WRITE_AND_ADD * (time.perf_counter() - started)


def _losses(output: Any) -> list[Tensor]:
    return [t for t in flatten(output).tensors if t.dim() == 0 and t.requires_grad]
