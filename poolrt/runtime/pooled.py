"""A model on its cards: what `poolrt.shard` puts in place of the model's forward.

first batch   place by weight -> probe -> plan -> place -> whole against split
every batch   scatter -> lanes -> gather -> cut node

Where stages are several cards, what they split is found and proven between probe and plan, with the weights where they
came from. A batch that stays whole on a single stage runs in the caller's thread: there is no one to hand over to.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from poolrt.planning.limits import OutputCard
from poolrt.planning.place_by_weight import place_by_weight
from poolrt.planning.plan import Plan
from poolrt.planning.profile import Profile, call_path, micro_batch_sizes
from poolrt.runtime.batches.assembly import Assembly
from poolrt.runtime.batches.batch_form import check_signature
from poolrt.runtime.batches.merge_weights import CannotMergeError
from poolrt.runtime.batches.microbatch import Call, OutputRule, batch_size_of, move_output, scatter
from poolrt.runtime.decide import Options, card_of_outputs, checked, feasible, layers_of, ways_to_fit
from poolrt.runtime.disguise import MARK, disguise
from poolrt.runtime.first_batch import measured_with
from poolrt.runtime.lanes.machine import Machine
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.lanes.random_state import CardSeeds
from poolrt.runtime.lanes.step import Step
from poolrt.runtime.measuring.measure import threads_per_lane
from poolrt.runtime.measuring.profile_model import weigh_layers
from poolrt.runtime.measuring.splitting import Cut, Splitting
from poolrt.runtime.on_cards import OnCards
from poolrt.runtime.placing import optimizer_state
from poolrt.runtime.placing.caps import caps_of
from poolrt.runtime.placing.latecomers import latecomers_named
from poolrt.runtime.placing.out_of_memory import MemoryGuard
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.placing.spill import Spill
from poolrt.runtime.placing.stages import SplitStage
from poolrt.runtime.split_layers import SplitLayers
from poolrt.runtime.state.compiled import nothing_compiled
from poolrt.runtime.state.layers import find_layers
from poolrt.runtime.state.trees import flatten, map_tensors
from poolrt.runtime.tensor_parallel_clock import StepClock
from poolrt.topology.topology import Topology


class Pooled:
    """A model whose layers live on several cards. Its forward runs in lanes."""

    def __init__(self, model: nn.Module, topology: Topology, options: Options, plan: Plan | None) -> None:
        self._model = weakref.ref(model)
        self.topology = topology
        self.devices = tuple(torch.device(card.device) for card in topology.cards)
        self.options = options if plan is None else replace(options, stages=plan.stages)
        stages = self.options.stages
        self.layers = layers_of(plan, model) if plan else find_layers(model, at_least=2 * len(stages or topology.cards))
        self.plan = plan
        self.profile: Profile | None = None
        self._crossed: tuple[int, int] | None = None
        """what lanes copied in the last step"""
        self._given_plan = plan is not None
        self._clock = StepClock()
        self._splitting = Splitting(options.batch_dim)
        self._guard = MemoryGuard(lambda: self.placement, lambda: ways_to_fit(self.plan))
        self._output_card: OutputCard = "last"
        caps = None if stages else caps_of(topology)  # cards of a stage are one lane's, in the streams it has
        self._on_cards = OnCards(model, self.layers, self.devices, caps)
        self._stages: tuple[SplitStage, ...] = ()
        self._split: SplitLayers | None = None

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        model = self._model()
        assert model is not None, "a pooled forward outlives no model"
        return model

    @property
    def placement(self) -> Placement:
        """Where everything lies."""
        return self._on_cards.placement

    @property
    def spill(self) -> Spill | None:
        """The pool of what does not fit the cards, if there is such."""
        return self._on_cards.spill

    @property
    def step_s(self) -> list[float]:
        """Seconds of each step so far, forward and backward together."""
        return self._clock.step_s

    @property
    def crossed(self) -> tuple[int, int] | None:
        """(tensors, bytes) copied between cards in the last step, forward and backward; None before the first."""
        return self._crossed or self.placement.traffic.crossed

    def start(self, call: Call | None) -> None:
        """Place the weights, prepare with a first batch if there is one, and take the place of the model's forward.

        Raises:
            Exception: what went wrong; the model is then as it was, on the devices it came from.
        """
        try:
            self._guard.run(lambda: self._place_first(call))
        except BaseException:
            self._on_cards.go_back()
            raise
        self._disguise()

    def _place_first(self, call: Call | None) -> None:
        if self.options.stages:
            pass  # what can be split is found with the weights where they are
        elif self.plan is not None:
            self._on_cards.put_up(self.layers, self.plan.card_of())
        else:
            weights = weigh_layers(self.model, self.layers)[0]
            self._on_cards.put_up(self.layers, place_by_weight(weights, self.topology), or_not=call is not None)
        if call is not None:
            self.prepare(call)
        elif not self.options.stages:
            self._on_cards.follow_optimizers(self._guard)

    def _disguise(self) -> None:
        disguise(
            self.model,
            self,
            forward=self.forward,
            devices=self.devices,
            twin=self._pool_twin,
            on_new_dtype=self._use_new_dtype,
        )

    def _pool_twin(self, model: nn.Module) -> None:
        """Pool a deep copy of the model, which lies on the same cards: same plan."""
        twin = Pooled(model, self.topology, self.options, self.plan)
        twin._given_plan, twin._stages = self._given_plan, self._stages
        if self.plan is not None and self.profile is not None:
            twin._adopt(self.plan, self.profile, in_pieces=True)
            twin.profile = self.profile
        elif not self.options.stages:
            twin._on_cards.put_up(twin.layers, self.placement.card_of())
            twin._on_cards.follow_optimizers(twin._guard)
        twin._disguise()

    def _use_new_dtype(self) -> None:
        """Weights of another dtype have other costs: the next batch is measured anew, if they do not lie in pieces."""
        if self.placement.together:
            self.remove_hooks()
            self.add_hooks()  # every card has its own copy of buffers
        else:
            self.profile = None

    # ---- once

    def prepare(self, call: Call) -> None:
        """Measure, plan, place and check with this first batch.

        Raises:
            InfeasibleError: if no plan fits the cards; the model stays as it was placed.
        """
        with nothing_compiled(), self._on_cards.bare():
            self._output_card = card_of_outputs(self._output_device(call), self.devices)
            measured = measured_with(call, self._on_cards, self.layers, self.topology, self.options, self._output_card)
            self.layers, profile = list(measured.layers), measured.profile
            self._split = SplitLayers(self.model, call, measured, self.topology, self.options, self.devices)
            plan = self._decide()
        self._adopt(plan, profile)
        with nothing_compiled():
            self._check_if_split(call, profile)
        self._split = None  # it holds the batch
        self.profile = profile
        for device in dict.fromkeys(self.devices):
            if device.type != "cpu":
                torch.get_device_module(device).reset_peak_memory_stats(device)

    def _prepare_late(self, call: Call) -> None:
        """With the first batch that is seen. If there is no room for pieces, the model is back where it came from."""
        try:
            self._guard.run(lambda: self.prepare(call))
        except BaseException:
            if self.placement.together:
                self._on_cards.go_back()
            raise

    def _decide(self, why_not_split: str = "") -> Plan:
        assert self._split is not None, "there is a first batch"
        if self.plan is not None and self._given_plan:
            plan = checked(self.plan, self.layers)
            return self._split.checked(plan) if plan.stages else plan
        return feasible(self._split.best(self._output_card, self._on_cards.as_it_came, why_not_split))

    def _adopt(self, plan: Plan, profile: Profile, *, in_pieces: bool = False) -> None:
        """Place the layers as planned; the path of their calls gives the cards' orders."""
        self.options = replace(self.options, stages=plan.stages)
        spill = Spill(plan, self.topology) if plan.spills else None
        if self._on_cards.caps is not None:
            self._on_cards.caps.leave_room_for([card.pool_limit_bytes for card in plan.cards])
        if plan.stages and not in_pieces:
            assert self._split is not None
            self._stages = self._split.deal(plan, self.layers)
        self._on_cards.put_up(self.layers, plan.card_of(), self._stages, spill, in_pieces=in_pieces)
        self._on_cards.follow_optimizers(self._guard)
        self.plan = plan
        self._orders = CardOrders(call_path(profile.calls, plan.card_of()))
        self._machine = Machine(self.placement, self._on_cards.run, threads_per_lane(self.topology))
        self._splitting.adopt(self._machine, self._orders, plan.micro_batches)

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
            self._adopt(self._decide(verdict.why_not), profile)

    # ---- every batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward on a whole batch, in lanes."""
        call = (args, kwargs)
        optimizer_state.end_step()
        if self.profile is None:
            check_signature(self.model, call)
            with torch.inference_mode(False):  # parameters moved in it could never learn again
                self._prepare_late(call)
        with latecomers_named(self.model, self.devices):
            return self._guard.run(lambda: self._forward(call))

    def _forward(self, call: Call) -> Any:
        cut = self._splitting.cut(call)
        if self._is_one_place and cut.parts == 1:
            return self._in_one_place(call)
        try:
            return self._run(call, cut)
        except CannotMergeError as error:
            self._splitting.failed(call, str(error))
        return self._run(call, Cut(1))  # not while the error is handled: it holds on to what the first run made

    @property
    def _is_one_place(self) -> bool:
        """Whether all layers are on one card, or on one stage."""
        stages = self.plan.stages if self.plan is not None else ()
        return len(stages or self.devices) == 1

    def _in_one_place(self, call: Call) -> Any:
        target = self._output_device(call)
        args, kwargs = self.placement.to_first_card(call)
        self._crossed = None
        with self._clock.forward() as step, self.placement.traffic.forward():
            output = self._on_cards.forward(*args, **kwargs)
            step.watch(flatten(output).tensors)
        return output if target is None else map_tensors(output, lambda t: move_output(t, target))

    def _run(self, call: Call, cut: Cut) -> Any:
        seeds = CardSeeds(self.devices, self.placement.together) if self.model.training else None
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
        self._crossed = (step.crossed_tensors, step.crossed_nbytes)

    def _output_device(self, call: Call) -> torch.device | None:
        """Outputs come back to where the batch came from, as with one card."""
        tensors = flatten(call).tensors
        return tensors[0].device if tensors else None

    def add_hooks(self) -> None:
        """Put hooks and rewrites on the model."""
        self._on_cards.add_hooks()

    def remove_hooks(self) -> None:
        """Take them off."""
        self._on_cards.remove_hooks()


def pooled_of(model: nn.Module) -> Pooled | None:
    """What stands behind the forward of `model`; None for a model that is not pooled."""
    return getattr(model.__dict__.get("forward"), MARK, None)
