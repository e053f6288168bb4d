"""A model on its cards: what `poolrt.shard` puts in place of the model's forward.

first batch   place by weight -> probe -> plan -> place -> whole against split
every batch   scatter -> lanes -> gather -> cut node
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from poolrt.planning.limits import OutputCard
from poolrt.planning.place_by_weight import place_by_weight
from poolrt.planning.plan import Plan
from poolrt.planning.profile import Profile, call_path, micro_batch_sizes
from poolrt.runtime import optimizer_state
from poolrt.runtime.alias import Aliases
from poolrt.runtime.assembly import Assembly
from poolrt.runtime.batch_form import check_signature
from poolrt.runtime.caps import caps_of
from poolrt.runtime.decide import Options, checked, decide, layers_of
from poolrt.runtime.disguise import MARK, disguise
from poolrt.runtime.hooks import hook_layers
from poolrt.runtime.layers import find_layers
from poolrt.runtime.machine import Machine
from poolrt.runtime.measure import Measured, measure, threads_per_lane, to_layer
from poolrt.runtime.merge_weights import CannotMergeError
from poolrt.runtime.microbatch import Call, OutputRule, batch_size_of, scatter
from poolrt.runtime.orders import CardOrders
from poolrt.runtime.out_of_memory import MemoryGuard
from poolrt.runtime.place import Placement, WeightsBefore
from poolrt.runtime.profile_model import weigh_layers
from poolrt.runtime.random_state import CardSeeds
from poolrt.runtime.spill import Spill
from poolrt.runtime.splitting import Cut, Splitting
from poolrt.runtime.step import Step
from poolrt.runtime.trees import flatten, map_tensors
from poolrt.topology.topology import Topology
from poolrt.transfer.move import move


class Pooled:
    """A model whose layers live on several cards. Its forward runs in lanes."""

    def __init__(self, model: nn.Module, topology: Topology, options: Options, plan: Plan | None) -> None:
        self._model = weakref.ref(model)
        self._original: Callable[..., Any] = model.forward
        self.topology = topology
        self.devices = tuple(torch.device(card.device) for card in topology.cards)
        self.options = options
        self.layers = layers_of(plan, model) if plan else find_layers(model, at_least=2 * len(topology.cards))
        self.plan = plan
        self.profile: Profile | None = None
        self.step_s: list[float] = []
        """seconds of each step so far, forward and backward together"""
        self.crossed: tuple[int, int] | None = None
        """(tensors, bytes) that lanes copied between cards in the last step, forward and backward together"""
        self._given_plan = plan is not None
        self._handles: list[RemovableHandle] = []
        self._splitting = Splitting(options.batch_dim)
        self._guard = MemoryGuard(lambda: self.placement, self._hints)
        self._output_card: OutputCard = "last"
        self._weights_before = WeightsBefore(model)
        self._spill: Spill | None = None
        self._caps = caps_of(topology)

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        model = self._model()
        assert model is not None, "a pooled forward outlives no model"
        return model

    def start(self, call: Call | None) -> None:
        """Place the weights, prepare with a first batch if there is one, and take the place of the model's forward.

        Raises:
            Exception: what went wrong; the model is then as it was, on the devices it came from.
        """
        try:
            self._guard.run(lambda: self._place_first(call))
        except BaseException:
            self.remove_hooks()
            self._weights_before.restore()
            raise
        optimizer_state.follow(self.placement, self._spill)
        self._install()

    def _place_first(self, call: Call | None) -> None:
        if self.plan is not None:
            self._place(self.plan.card_of())
        else:
            self._place(
                place_by_weight(weigh_layers(self.model, self.layers)[0], self.topology), or_not=call is not None
            )
        if call is not None:
            self.prepare(call)

    def _install(self) -> None:
        disguise(
            self.model,
            self,
            forward=self.forward,
            devices=self.devices,
            twin=self._pool_twin,
            on_new_dtype=self._forget_measurements,
        )

    def _pool_twin(self, model: nn.Module) -> None:
        """Pool a deep copy of the model: same cards, same plan."""
        twin = Pooled(model, self.topology, self.options, self.plan)
        twin._given_plan = self._given_plan
        twin._place(self.placement.card_of())
        if self.plan is not None and self.profile is not None:
            twin._adopt(self.plan, self.profile)
            twin.profile = self.profile
        optimizer_state.follow(twin.placement, twin._spill)
        twin._install()

    def _forget_measurements(self) -> None:
        """Weights of another dtype have other costs: the next batch is measured anew."""
        self.profile = None

    # ---- once

    def prepare(self, call: Call) -> None:
        """Measure, plan, place and check with this first batch.

        Raises:
            InfeasibleError: if no plan fits the cards; the model stays as it was placed.
        """
        measured = self._measure(call)
        profile = measured.profile
        self.layers = list(measured.layers)
        self._output_card = self._card_of_outputs(call)
        plan = self._decide(profile)
        self._adopt(plan, profile)
        self._check_if_split(call, profile)
        self.profile = profile
        for device in dict.fromkeys(self.devices):
            if device.type != "cpu":
                torch.get_device_module(device).reset_peak_memory_stats(device)

    def _measure(self, call: Call) -> Measured:
        """Profile on the cards; if the weights or one layer's work do not fit there, where the model came from."""
        try:
            return self._measure_here(call, lambda: Aliases(self.placement, learning=True).in_place())
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
        self._weights_before.restore()
        return self._measure_here(call, nullcontext)

    def _measure_here(self, call: Call, in_place: Callable[[], AbstractContextManager[None]]) -> Measured:
        self.remove_hooks()  # the probe brings its own
        try:
            return measure(
                self.model,
                self._original,
                self.layers,
                to_layer(self.layers[0].module, call) if self.layers else call,
                batch_size=batch_size_of(call, self.options.batch_dim) or 1,
                gathered=self._card_of_outputs(call) != "host",
                threads=threads_per_lane(self.topology),
                in_place=in_place,
            )
        finally:
            self.add_hooks()

    def _card_of_outputs(self, call: Call) -> OutputCard:
        """Where whole outputs are put together, in the planner's words."""
        device = self._output_device(call)
        if device is None:
            return "last"
        return self.devices.index(device) if device in self.devices else "host"

    def _decide(self, profile: Profile) -> Plan:
        if self.plan is not None and self._given_plan:
            return checked(self.plan, self.layers)
        return decide(profile, self.topology, self.options, self._output_card)

    def _adopt(self, plan: Plan, profile: Profile) -> None:
        """Place the layers as planned; the path of their calls gives the cards' orders."""
        self._spill = Spill(plan, self.topology) if plan.spills else None
        if self._caps is not None:
            self._caps.leave_room_for([card.pool_limit_bytes for card in plan.cards])
        self._place(plan.card_of())
        optimizer_state.follow(self.placement, self._spill)
        self.plan = plan
        self._orders = CardOrders(call_path(profile.calls, plan.card_of()))
        self._machine = Machine(self.placement, self._original, threads_per_lane(self.topology))
        self._splitting.adopt(self._machine, self._orders, plan.micro_batches)

    def _place(self, card_of: dict[str, int], *, or_not: bool = False) -> None:
        """Layers to cards. With `or_not` weights that do not fit stay behind: a plan will say what is missing."""
        self.remove_hooks()
        self.placement = Placement(self.model, self.layers, card_of, self.devices, self._caps)
        try:
            self.placement.apply(self._spill)
        except torch.OutOfMemoryError:
            if not or_not:
                raise
            self._weights_before.restore()
        self.add_hooks()

    def _check_if_split(self, call: Call, profile: Profile) -> None:
        """Find out whether this form of batch may be split; if not, plan again for a whole batch and say why."""
        assert self.plan is not None
        verdict = self._splitting.verdict(call) if self.plan.micro_batches > 1 else None
        if verdict is None or not verdict.why_not:
            return
        self._splitting.warn(f"the batch stays whole: {verdict.why_not}")
        if self._given_plan:
            self.plan = replace(self.plan, notes=(*self.plan.notes, f"The batch stays whole: {verdict.why_not}."))
        else:
            self._adopt(decide(profile, self.topology, self.options, self._output_card, verdict.why_not), profile)

    # ---- every batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward on a whole batch, in lanes."""
        call = (args, kwargs)
        optimizer_state.end_step()
        if self.profile is None:
            check_signature(self.model, call)
            with torch.inference_mode(False):  # parameters moved in it could never learn again
                self._guard.run(lambda: self.prepare(call))
        return self._guard.run(lambda: self._forward(call))

    def _forward(self, call: Call) -> Any:
        cut = self._splitting.cut(call)
        if len(self.devices) == 1 and cut.parts == 1:
            return self._on_one_card(call)
        try:
            return self._run(call, cut)
        except CannotMergeError as error:
            self._splitting.failed(call, str(error))
        return self._run(call, Cut(1))  # not while the error is handled: it holds on to what the first run made

    def _on_one_card(self, call: Call) -> Any:
        target = self._output_device(call)
        args, kwargs = self.placement.to_first_card(call)
        output = self._original(*args, **kwargs)
        return output if target is None else map_tensors(output, lambda t: move(t, target))

    def _run(self, call: Call, cut: Cut) -> Any:
        seeds = CardSeeds(self.devices) if self.model.training else None
        pieces = scatter(self.placement.to_first_card(call), cut.parts, self.options.batch_dim)
        step = Step(self._machine, pieces, *self._orders.of(cut.parts), seeds)
        step.on_done = self._note
        step.guard = self._guard.run
        target = self._output_device(call)
        if cut.rules and target is not None:
            sizes = micro_batch_sizes(batch_size_of(call, self.options.batch_dim) or 1, cut.parts)
            step.assembly = Assembly(cut.rules, sizes, target)
        outputs = step.run_forward()
        rules = cut.rules or [OutputRule("same")] * len(outputs[0].leaves)
        return step.finish_forward(outputs, rules, target)

    def _note(self, step: Step) -> None:
        self.step_s.append(step.forward_s + step.backward_s)
        self.crossed = (step.crossed_tensors, step.crossed_nbytes)

    def _output_device(self, call: Call) -> torch.device | None:
        """Outputs come back to where the batch came from, as with one card."""
        tensors = flatten(call).tensors
        return tensors[0].device if tensors else None

    def _hints(self) -> list[str]:
        hints = ["a smaller batch", "more cards or more memory per card"]
        if self.plan is not None and self.plan.micro_batches < self.plan.batch_size:
            hints.insert(1, f"more micro-batches than {self.plan.micro_batches} (smaller workspace)")
        return hints

    def add_hooks(self) -> None:
        """Put the hooks on the layers."""
        self._handles = hook_layers(self.layers, to_layer)

    def remove_hooks(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def pooled_of(model: nn.Module) -> Pooled | None:
    """What stands behind the forward of `model`; None for a model that is not pooled."""
    return getattr(model.__dict__.get("forward"), MARK, None)
