"""A model on its cards: what `poolrt.shard` puts in place of the model's forward.

first batch   place by weight -> probe -> plan -> place -> whole against split
every batch   scatter -> lanes -> gather -> cut node
"""

from __future__ import annotations

import functools
import os
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from poolrt.errors import InfeasibleError, PlanError
from poolrt.planning.place_by_weight import place_by_weight
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan
from poolrt.planning.profile import Profile, call_path
from poolrt.planning.schedule import Action, gpipe_order
from poolrt.runtime import optimizer_state
from poolrt.runtime.alias import Aliases
from poolrt.runtime.batch_form import check_signature, form_of
from poolrt.runtime.hooks import hook_layers
from poolrt.runtime.layers import find_layers
from poolrt.runtime.measure import Measured, measure, to_layer
from poolrt.runtime.merge_weights import CannotMergeError
from poolrt.runtime.microbatch import Call, OutputRule, batch_size_of, scatter
from poolrt.runtime.out_of_memory import OutOfMemoryError, card_named_in, explained
from poolrt.runtime.place import Placement, WeightsBefore
from poolrt.runtime.profile_model import weigh_layers
from poolrt.runtime.random_state import CardSeeds
from poolrt.runtime.split_check import Verdict, check_split
from poolrt.runtime.step import Machine, Orders, Step
from poolrt.runtime.trees import flatten, map_tensors
from poolrt.runtime.turnstile import Ticket
from poolrt.topology.topology import Topology


_MARK = "_poolrt_pooled"


class SplitWarning(UserWarning):
    """The batch stays whole, or is split into fewer parts than asked for; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked `shard` for."""

    micro_batches: int | str = "auto"
    schedule: str = "auto"
    batch_dim: int = 0
    optimizer: str = "adamw"


@dataclass
class History:
    """Seconds of the steps so far, forward and backward together, without the first."""

    step_s: list[float] = field(default_factory=list)


class Pooled:
    """A model whose layers live on several cards. Its forward runs in lanes."""

    def __init__(self, model: nn.Module, topology: Topology, options: Options, plan: Plan | None) -> None:
        self._model = weakref.ref(model)
        self._original: Callable[..., Any] = model.forward
        self.topology = topology
        self.devices = tuple(torch.device(card.device) for card in topology.cards)
        self.options = options
        self.layers = find_layers(model, at_least=2 * len(topology.cards))
        self.plan = plan
        self.profile: Profile | None = None
        self.history = History()
        self._given_plan = plan is not None
        self._verdicts: dict[Any, Verdict] = {}
        self._warned: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._path: tuple[int, ...] = (0,)
        self._output_card: int | Literal["host", "last"] = "last"
        self._weights_before = WeightsBefore(model)

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
            self._guarded(lambda: self._place_first(call))
        except BaseException:
            self._remove_hooks()
            self._weights_before.restore()
            raise
        optimizer_state.follow(self.model.parameters())
        self._install()

    def _place_first(self, call: Call | None) -> None:
        if self.plan is not None:
            self._place(self._checked(self.plan).card_of())
        else:
            self._place(
                place_by_weight(weigh_layers(self.model, self.layers)[0], self.topology), or_not=call is not None
            )
        if call is not None:
            self.prepare(call)

    def _install(self) -> None:
        """From now on the model's forward is this one; its signature stays, and so do hooks on the model."""

        @functools.wraps(self._original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

        setattr(forward, _MARK, self)
        self.model.forward = forward

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
        plan = self._checked(self.plan) if self._given_plan else self._decide(profile)
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
        self._remove_hooks()  # the probe brings its own
        try:
            return measure(
                self.model,
                self._original,
                self.layers,
                to_layer(self.layers[0].module, call) if self.layers else call,
                batch_size=batch_size_of(call, self.options.batch_dim) or 1,
                gathered=self._card_of_outputs(call) != "host",
                threads=self._threads_per_lane(),
                in_place=in_place,
            )
        finally:
            self._handles = hook_layers(self.layers, to_layer)

    def _card_of_outputs(self, call: Call) -> int | Literal["host", "last"]:
        """Where whole outputs are put together, in the planner's words."""
        device = self._output_device(call)
        if device is None:
            return "last"
        return self.devices.index(device) if device in self.devices else "host"

    def _decide(self, profile: Profile, why_not_split: str = "") -> Plan:
        plan = make_plan(
            profile,
            self.topology,
            micro_batches=self.options.micro_batches,
            schedule=self.options.schedule,
            optimizer=self.options.optimizer,
            splittable=not why_not_split,
            why_not_split=why_not_split,
            output_card=self._output_card,
        )
        if not plan.feasible:
            raise InfeasibleError(plan.reason)
        return plan

    def _checked(self, plan: Plan | None) -> Plan:
        """A plan made elsewhere, after seeing that its layers are this model's."""
        assert plan is not None
        names, planned = {layer.name for layer in self.layers}, set(plan.card_of())
        if names != planned:
            raise PlanError(
                f"the plan places layers {sorted(planned - names)[:3]} that the model does not call, or leaves out "
                f"{sorted(names - planned)[:3]}; make a new plan with poolrt.plan"
            )
        return plan

    def _adopt(self, plan: Plan, profile: Profile) -> None:
        """Place the layers as planned; the path of their calls gives the cards' orders."""
        self._place(plan.card_of())
        self.plan = plan
        self._path = call_path(profile.calls, plan.card_of()) or (self.placement.first_card,)

    def _place(self, card_of: dict[str, int], *, or_not: bool = False) -> None:
        """Layers to cards. With `or_not` weights that do not fit stay behind: a plan will say what is missing."""
        self._remove_hooks()
        self.placement = Placement(self.model, self.layers, card_of, self.devices)
        try:
            self.placement.apply()
        except torch.OutOfMemoryError:
            if not or_not:
                raise
            self._weights_before.restore()
        self._handles = hook_layers(self.layers, to_layer)
        forward = self._original
        self.machine = Machine(self.placement, forward, self._threads_per_lane())
        self._orders: dict[int, tuple[Orders, Orders]] = {}

    def _threads_per_lane(self) -> int:
        """Virtual cards share the host's cores; lanes on GPUs only launch."""
        if any(card.kind == "virtual" for card in self.topology.cards):
            return max(1, len(os.sched_getaffinity(0)) // len(self.topology.cards))
        return torch.get_num_threads()

    # ---- whole against split

    def _check_if_split(self, call: Call, profile: Profile) -> None:
        """Find out whether this form of batch may be split; if not, plan again for a whole batch and say why."""
        assert self.plan is not None
        if self.plan.micro_batches == 1:
            return
        verdict = self._verdict(call)
        if not verdict.why_not:
            return
        self._warn(f"the batch stays whole: {verdict.why_not}")
        if self._given_plan:
            self.plan = replace(self.plan, notes=(*self.plan.notes, f"The batch stays whole: {verdict.why_not}."))
        else:
            self._adopt(self._decide(profile, why_not_split=verdict.why_not), profile)

    def _verdict(self, call: Call) -> Verdict:
        form = form_of(self.model, call, self.options.batch_dim)
        if form not in self._verdicts:
            self._verdicts[form] = self._judge(call)
        return self._verdicts[form]

    def _judge(self, call: Call) -> Verdict:
        if flatten(call).has_state:
            return Verdict(why_not="the batch carries an object with a state of its own (a cache, say)")
        size = batch_size_of(call, self.options.batch_dim)
        parts = self._parts_wanted(size)
        if parts == 1:
            return Verdict(why_not="it has a single sample")
        orders = {count: self._order(count)[0] for count in (1, parts)}
        return check_split(self.machine, self._on_first_card(call), orders, parts, self.options.batch_dim)

    def _parts_wanted(self, batch_size: int | None) -> int:
        assert self.plan is not None
        if batch_size is None:
            return 1
        if batch_size < self.plan.micro_batches:
            self._warn(
                f"a batch of {batch_size} cannot be cut into {self.plan.micro_batches} micro-batches; it is cut into {batch_size}"
            )
        return min(self.plan.micro_batches, batch_size)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"poolrt: {message}", SplitWarning, stacklevel=2)

    # ---- every batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward on a whole batch, in lanes."""
        call = (args, kwargs)
        if self.profile is None:
            check_signature(self.model, call)
            self._guarded(lambda: self.prepare(call))
        return self._guarded(lambda: self._forward(call))

    def _forward(self, call: Call) -> Any:
        parts, rules = self._how_to_split(call)
        if len(self.devices) == 1 and parts == 1:
            return self._on_one_card(call)
        try:
            return self._run(call, parts, rules)
        except CannotMergeError as error:
            self._warn(f"this batch runs again, whole: {error}")
            return self._run(call, 1, None)

    def _how_to_split(self, call: Call) -> tuple[int, Sequence[OutputRule] | None]:
        assert self.plan is not None
        if self.plan.micro_batches == 1:
            return 1, None
        parts = self._parts_wanted(batch_size_of(call, self.options.batch_dim))
        verdict = self._verdict(call) if parts > 1 else Verdict(why_not="it has a single sample")
        return (1, None) if verdict.why_not else (parts, verdict.rules)

    def _on_one_card(self, call: Call) -> Any:
        target = self._output_device(call)
        args, kwargs = self._on_first_card(call)
        output = self._original(*args, **kwargs)
        return output if target is None else map_tensors(output, lambda t: t.to(target))

    def _run(self, call: Call, parts: int, rules: Sequence[OutputRule] | None) -> Any:
        forward_order, backward_order = self._order(parts)
        seeds = CardSeeds(self.devices) if self.model.training else None
        pieces = scatter(self._on_first_card(call), parts, self.options.batch_dim)
        step = Step(self.machine, pieces, forward_order, backward_order, seeds)
        step.on_done = self._note
        step.guard = self._guarded
        outputs = step.run_forward()
        whole = [OutputRule("same")] * len(outputs[0].leaves)
        return step.finish_forward(outputs, whole if rules is None else rules, self._output_device(call))

    def _note(self, step: Step) -> None:
        self.history.step_s.append(step.forward_s + step.backward_s)

    def _order(self, parts: int) -> tuple[Orders, Orders]:
        if parts not in self._orders:
            forward, backward = (gpipe_order(path, parts) for path in (self._path, self._path[::-1]))
            self._orders[parts] = _tickets(forward), _tickets(backward)
        return self._orders[parts]

    # ---- moving

    def _on_first_card(self, call: Call) -> Call:
        device = self.devices[self.placement.first_card]
        moved: Call = map_tensors(call, lambda tensor: tensor.to(device))
        return moved

    def _output_device(self, call: Call) -> torch.device | None:
        """Outputs come back to where the batch came from, as with one card."""
        tensors = flatten(call).tensors
        return tensors[0].device if tensors else None

    # ---- out of memory

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run `work`; an out-of-memory error comes out with what fills the card and what would make it fit."""
        try:
            return work()
        except OutOfMemoryError:
            raise
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            raise self._explained(error) from None  # no local name: a frame that holds its own error is never freed

    def _explained(self, error: torch.OutOfMemoryError) -> OutOfMemoryError:
        card = card_named_in(error, self.devices)
        device = None if card is None else self.devices[card]
        states = optimizer_state.state_nbytes(self.model.parameters())
        return explained(
            error,
            card=card,
            device=device,
            weights_nbytes=0 if card is None else self.placement.weight_nbytes()[card],
            gradients_nbytes=0 if card is None else self.placement.gradient_nbytes()[card],
            optimizer_nbytes=0 if device is None else states.get(device, 0),
            hints=self._hints(),
        )

    def _hints(self) -> list[str]:
        hints = ["a smaller batch", "more cards or more memory per card"]
        if self.plan is not None and self.plan.micro_batches < self.plan.batch_size:
            hints.insert(1, f"more micro-batches than {self.plan.micro_batches} (smaller workspace)")
        return hints

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def pooled_of(model: nn.Module) -> Pooled | None:
    """What `install` put in place of the model's forward; None for a model that is not pooled."""
    return getattr(model.__dict__.get("forward"), _MARK, None)


def _tickets(orders: dict[int, tuple[Action, ...]]) -> Orders:
    return {card: [Ticket(action.visit, action.micro_batch) for action in actions] for card, actions in orders.items()}
