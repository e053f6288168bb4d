"""One forward of the whole batch in lanes, and the backward that may follow: the cut node.

    user's graph:      parameters --+--> [ cut node ] --> outputs --> user's loss
    lanes' own graphs: alias ... micro-batch 0 ... output 0
                       alias ... micro-batch 1 ... output 1

The cut node's backward takes the gradients of the outputs apart, runs every micro-batch's backward in its own lane,
and hands the summed gradients of the aliases over as the parameters' gradients.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from poolrt.runtime.batches.assembly import Assembly
from poolrt.runtime.batches.microbatch import Call, Gathered, OutputRule, gather, split_gradient
from poolrt.runtime.lanes.frames import host_generator_kept, know_lanes
from poolrt.runtime.lanes.glue import Glue
from poolrt.runtime.lanes.lane import Lane, current
from poolrt.runtime.lanes.machine import LaneWalker, Machine
from poolrt.runtime.lanes.orders import Orders
from poolrt.runtime.lanes.random_state import CardSeeds
from poolrt.runtime.lanes.run_lanes import run_lanes
from poolrt.runtime.lanes.sever import alias
from poolrt.runtime.lanes.turnstile import Admission
from poolrt.runtime.placing.alias import Aliases
from poolrt.runtime.regions.running.parted import Parted
from poolrt.runtime.state.thread_state import ThreadState
from poolrt.runtime.state.trees import Tree, flatten


class Step:
    """One forward of micro-batches `parts` through the cards, in the order of `forward_order`."""

    def __init__(
        self,
        machine: Machine,
        parts: Sequence[Call],
        forward_order: Orders,
        backward_order: Orders,
        seeds: CardSeeds | None = None,
    ) -> None:
        self._machine = machine
        self._parts: list[Call] = list(parts)
        self._orders = (forward_order, backward_order)
        self._learning = torch.is_grad_enabled()
        self._aliases = Aliases(machine.placement, self._learning)
        self._seeds = seeds
        if seeds is not None:
            know_lanes()
        self._lanes = [Lane(i, machine.devices, self._seeds, machine.placement.caps) for i in range(len(parts))]
        self._rows: list[list[Tensor]] = []
        self._gathered: Gathered | None = None
        self.inputs: list[Tensor] = []
        """tensors of the batch that need a gradient"""
        self._cut_inputs: list[tuple[Tensor, Tensor]] = []
        self._shared: list[tuple[weakref.ref[Tensor], int]] = []
        self.admissions: list[Admission] = []
        self.forward_s = 0.0
        self.backward_s = 0.0
        self.on_done: Callable[[Step], None] = lambda step: None
        self.assembly: Assembly | None = None
        """where lanes put their outputs together, if they do"""
        self.guard: Callable[[Callable[[], Any]], Any] = lambda work: work()

    @property
    def crossed_tensors(self) -> int:
        """Copies between cards that the lanes have made so far."""
        return sum(lane.crossings.copied_tensors for lane in self._lanes)

    @property
    def crossed_nbytes(self) -> int:
        """Their bytes."""
        return sum(lane.crossings.copied_nbytes for lane in self._lanes)

    # ---- forward

    def run_forward(self) -> list[Tree]:
        """Run every lane's forward; the outputs of each, taken apart.

        Raises:
            Exception: what a lane raised, itself; everything is as before the step.
        """
        started = time.perf_counter()
        if self._learning:
            self._parts = [self._cut(part) for part in self._parts]
        outputs: list[Tree | None] = [None] * len(self._parts)
        state = ThreadState(self._machine.device_types, self._machine.devices)
        with self._aliases.in_place(), self._seeds.restored() if self._seeds else nullcontext():
            self._run_lanes(
                self._orders[0], lambda lane: outputs.__setitem__(lane.index, state.run(lambda: self._forward(lane)))
            )
        self._parts.clear()
        self.forward_s = time.perf_counter() - started
        return [tree for tree in outputs if tree is not None]

    def _cut(self, part: Call) -> Call:
        """Inputs that need a gradient are cut from the user's graph, as parameters are."""
        tree = flatten(part)
        if not any(t.requires_grad for t in tree.tensors):
            return part
        leaves = []
        for tensor in tree.tensors:
            leaf = tensor
            if tensor.requires_grad:
                leaf = tensor.detach().requires_grad_()
                self._cut_inputs.append((tensor, leaf))
            leaves.append(leaf)
        rebuilt: Call = tree.rebuild(leaves)
        return rebuilt

    def _forward(self, lane: Lane) -> Tree:
        placement = self._machine.placement
        glue = Glue(lane.crossings, lambda: lane.device)
        current.walker = LaneWalker(self._machine, lane, glue)
        try:
            args, kwargs = lane.enter(placement.first_card, self._parts[lane.index])
            with glue, placement.traffic.forward(lane.crossings.count):
                output = self._machine.forward(*args, **kwargs)
        finally:
            current.walker = None
            lane.crossings.clear()
        tree = flatten(output, into_state=True, apart=True)
        if self.assembly is not None:
            lane.leave_for_good()  # the card is free while this lane copies
            self.assembly.put(lane.index, tree)
        return tree

    def _run_lanes(self, order: Orders, body: Callable[[Lane], None]) -> None:
        caps = self._machine.placement.caps
        after = [] if caps is None else caps.begin()
        try:
            self.admissions += run_lanes(self._lanes, order, body, self._machine.threads_per_lane, after)
        except BaseException:
            self._rows.clear()
            raise
        finally:
            if caps is not None:
                caps.end()

    # ---- gather

    def finish_forward(self, outputs: Sequence[Tree], rules: Sequence[OutputRule], device: torch.device | None) -> Any:
        """The model's output for the whole batch, connected to the user's graph through the cut node."""
        gathered = gather(outputs, rules, device, self.assembly.complete() if self.assembly else None)
        self.assembly = None
        rebuild = outputs[0].rebuild
        if not self._learning or not any(t.requires_grad for tree in outputs for t in tree.tensors):
            return rebuild(gathered.tensors)
        self._rows = [tree.tensors for tree in outputs]
        self._gathered = gathered
        self.inputs = [tensor for tensor, _ in self._cut_inputs]
        return rebuild(CutNode.apply(self, *self.inputs, *self._aliases.parameters))

    def outputs(self) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """For the cut node: the whole outputs, and those among them that need no gradient."""
        assert self._gathered is not None
        tensors = tuple(alias(t) for t in self._gathered.tensors)
        self._gathered.tensors.clear()
        own = {t.data_ptr() for row in self._rows for t in row if not isinstance(t, Parted)}
        self._shared = [(weakref.ref(t), t._version) for t in tensors if t.data_ptr() in own]
        needs = [any(row[i].requires_grad for row in self._rows) for i in range(len(tensors))]
        return tensors, [t for t, needed in zip(tensors, needs, strict=True) if not needed]

    # ---- backward

    def run_backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of `inputs` and of the aliases' parameters from those of the outputs."""
        started = time.perf_counter()
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        work = self._lane_gradients(gradients)
        state = ThreadState(self._machine.device_types, self._machine.devices)
        restored = self._seeds.restored() if self._seeds else nullcontext()
        try:
            with self._aliases.in_place(), restored, host_generator_kept():
                self._run_lanes(
                    self._orders[1], lambda lane: state.run(lambda: self._backward(lane, work[lane.index], keep))
                )
        except BaseException:
            self._aliases.drop_gradients()
            raise
        if not keep:
            self._rows = []
        self.backward_s = time.perf_counter() - started
        self.on_done(self)
        return [self._take_input_gradient(leaf) for _, leaf in self._cut_inputs] + self._aliases.take_gradients()

    def _lane_gradients(self, gradients: Sequence[Tensor | None]) -> list[list[tuple[Tensor, Tensor]]]:
        """Per lane: (output tensor, its gradient) for backward to start from."""
        if not self._rows or not all(self._rows):
            raise RuntimeError(
                "Trying to backward through the graph a second time (or after an error in it): the saved values are "
                "gone. Give retain_graph=True the first time, or run forward again."
            )
        if any((t := output()) is not None and t._version != version for output, version in self._shared):
            raise RuntimeError(
                "an output of the model was changed in place before backward, but backward needs its old values; "
                "change a clone of it instead"
            )
        assert self._gathered is not None
        work: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._rows]
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            parts = [row[index] for row in self._rows]
            pieces = split_gradient(gradient, self._gathered.rules[index], self._gathered.weights[index], parts)
            for lane_work, part, piece in zip(work, parts, pieces, strict=True):
                if piece is not None and part.requires_grad:
                    lane_work.append((part, piece))
        return work

    def _backward(self, lane: Lane, work: list[tuple[Tensor, Tensor]], keep: bool) -> None:
        if not work:
            return
        glue = Glue(lane.crossings, lambda: lane.device)
        current.walker = LaneWalker(self._machine, lane, glue)
        try:
            lane.go(lane.path[-1])
            tensors, gradients = [t for t, _ in work], [g for _, g in work]
            lane.lend(gradients)
            work.clear()
            if not keep:
                self._rows[lane.index] = []
            with glue:  # a checkpoint runs forward code again
                _run_engine(tensors, gradients, keep)
        finally:
            current.walker = None
            lane.crossings.clear()

    @staticmethod
    def _take_input_gradient(leaf: Tensor) -> Tensor | None:
        gradient, leaf.grad = leaf.grad, None
        return gradient


def _run_engine(tensors: Sequence[Tensor], gradients: Sequence[Tensor], keep: bool) -> None:
    """torch.autograd.backward, which would switch the innermost function mode off for as long as it runs."""
    torch.autograd.Variable._execution_engine.run_backward(
        tuple(tensors), tuple(gradients), keep, False, (), allow_unreachable=True, accumulate_grad=True
    )


class CutNode(torch.autograd.Function):
    """The one node between the user's graph and the lanes' graphs."""

    @staticmethod
    def forward(ctx: Any, step: Step, *cut: Tensor) -> tuple[Tensor, ...]:
        """The whole outputs; `cut` are the inputs and parameters whose gradients backward returns."""
        ctx.step = step
        ctx.set_materialize_grads(False)
        outputs, constant = step.outputs()
        ctx.mark_non_differentiable(*constant)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Gradients for `cut`."""
        return (None, *ctx.step.guard(lambda: ctx.step.run_backward(gradients)))
