"""A model whose layers are split over all cards: what `poolrt.shard(model, tensor_parallel=n)` makes of a model.

first batch   find regions, each proven -> plan -> parameters in pieces -> rewrites on the modules
every batch   to the lead card -> the model's own forward, in the caller's thread, on the whole batch -> outputs back

There are no micro-batches: batches that cannot be cut (one sample, BatchNorm, generation) run as they are.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.errors import InfeasibleError, PlanError
from poolrt.planning.plan import Plan
from poolrt.planning.tensor_parallel import plan_split
from poolrt.runtime.batch_form import check_signature
from poolrt.runtime.disguise import disguise
from poolrt.runtime.microbatch import Call
from poolrt.runtime.out_of_memory import MemoryGuard
from poolrt.runtime.regions.install import Installed
from poolrt.runtime.regions.parted import Parted
from poolrt.runtime.regions.plan import RegionPlan
from poolrt.runtime.sharded.parameter import ShardedParameter, pieces
from poolrt.runtime.tensor_parallel_clock import StepClock
from poolrt.runtime.tensor_parallel_find import regions_of
from poolrt.runtime.tensor_parallel_place import SplitPlacement
from poolrt.runtime.tensor_parallel_profile import split_facts
from poolrt.runtime.trees import flatten, map_tensors
from poolrt.topology.topology import Topology


def plan_tensor_parallel(
    model: nn.Module,
    call: Call,
    topology: Topology,
    *,
    batch_dim: int,
    optimizer: str,
    devices: Sequence[torch.device] | None = None,
) -> tuple[Plan, RegionPlan]:
    """How the layers of `model` would be split, and what a step would cost. Moves nothing.

    Args:
        model: on whatever device.
        call: one whole batch.
        topology: the cards; they need not be there.
        batch_dim: the dimension of inputs along which samples lie.
        optimizer: what will train it: a name that planning knows.
        devices: of the cards, to prove rewrites there; on the host unless given.

    Raises:
        ModelError: if nothing of the model can be split.
    """
    regions = regions_of(model, call, topology, batch_dim, devices)
    return plan_split(split_facts(model, regions, call, topology, batch_dim), topology, optimizer), regions


class TensorParallel:
    """A model whose layers run on all cards at once."""

    def __init__(
        self, model: nn.Module, topology: Topology, *, batch_dim: int, optimizer: str, plan: Plan | None = None
    ) -> None:
        self._model = weakref.ref(model)
        self._split_forward: Callable[..., Any] = model.forward
        self.topology = topology
        self.devices = tuple(torch.device(card.device) for card in topology.cards)
        self.plan = plan
        self.regions: RegionPlan | None = None
        """None until there was a batch"""
        self.crossed: tuple[int, int] | None = None
        """(tensors, bytes) copied between cards in one step: not counted"""
        self._batch_dim, self._optimizer = batch_dim, optimizer
        self._given_plan = plan is not None
        self._placement: SplitPlacement | None = None
        self._installed: Installed | None = None
        self._pieces: list[list[Tensor]] = []
        self._guard = MemoryGuard(self._placed, lambda: _HINTS)
        self._clock = StepClock()

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        model = self._model()
        assert model is not None, "a split forward outlives no model"
        return model

    @property
    def step_s(self) -> list[float]:
        """Seconds of each step so far, forward and backward together."""
        return self._clock.step_s

    def start(self, call: Call | None) -> None:
        """Prepare with a first batch if there is one, and take the place of the model's forward.

        Raises:
            Exception: what went wrong; the model is then as it was, where it was.
        """
        if call is not None:
            self._guard.run(lambda: self.prepare(call))
        self._disguise()

    def _disguise(self) -> None:
        disguise(
            self.model,
            self,
            forward=self.forward,
            devices=self.devices,
            twin=self._split_twin,
            on_new_dtype=self._install_again,
        )

    # ---- once

    def prepare(self, call: Call) -> None:
        """Find the regions, plan, and split the model.

        Raises:
            ModelError: if nothing of the model can be split.
            InfeasibleError: if a card cannot hold its part.
            PlanError: if a plan made earlier does not split what is found now.
        """
        with self._bare():
            found, regions = self._planned(call)
        if not found.feasible:
            raise InfeasibleError(found.reason)
        placement = SplitPlacement(self.model, regions.splits, self.devices)
        try:
            placement.place()
            self._placement, self.regions, self.plan = placement, regions, found
            self.add_hooks()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            self.remove_hooks()
            self._placement = self.regions = None
            placement.undo()
            raise
        placement.follow_optimizers()
        for device in dict.fromkeys(self.devices):
            if device.type != "cpu":
                torch.get_device_module(device).reset_peak_memory_stats(device)

    def _planned(self, call: Call) -> tuple[Plan, RegionPlan]:
        if self.plan is None or not self._given_plan:
            return plan_tensor_parallel(
                self.model,
                call,
                self.topology,
                batch_dim=self._batch_dim,
                optimizer=self._optimizer,
                devices=self.devices,
            )
        regions = regions_of(self.model, call, self.topology, self._batch_dim, self.devices)
        found = {rewrite.module for region in regions.regions for rewrite in region.rewrites}
        planned = set(self.plan.cards[-1].layers)
        if found != planned:
            raise PlanError(
                f"the plan splits {sorted(planned - found)[:3]} which cannot be split now, or leaves out "
                f"{sorted(found - planned)[:3]}; make a new plan with poolrt.plan"
            )
        return self.plan, regions

    def _placed(self) -> SplitPlacement:
        return self._placement or SplitPlacement(self.model, {}, self.devices)

    def _split_twin(self, model: nn.Module) -> None:
        """Split a deep copy of the model, whose parameters lie in pieces already."""
        twin = TensorParallel(
            model, self.topology, batch_dim=self._batch_dim, optimizer=self._optimizer, plan=self.plan
        )
        twin._given_plan = self._given_plan
        if self.regions is not None:
            twin._placement = SplitPlacement(model, self.regions.splits, self.devices)
            twin.regions = self.regions
            twin.add_hooks()
            twin._placement.follow_optimizers()
        twin._disguise()

    # ---- every batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward on a whole batch, its layers on all cards."""
        call = (args, kwargs)
        if self.regions is None:
            check_signature(self.model, call)
            with torch.inference_mode(False):  # parameters split in it could never learn again
                self._guard.run(lambda: self.prepare(call))
        return self._guard.run(lambda: self._forward(call))

    def _forward(self, call: Call) -> Any:
        target = _device_of(call)
        args, kwargs = map_tensors(call, lambda tensor: tensor.to(self.devices[0]))
        with self._clock.forward() as step:
            output = self._split_forward(*args, **kwargs)
            step.watch(flatten(output).tensors)
        return output if target is None else map_tensors(output, lambda tensor: _to(tensor, target))

    def add_hooks(self) -> None:
        """Put the rewrites on the modules."""
        if self.regions is None or self._installed is not None:
            return
        # Pieces are the same objects only while someone holds all of a parameter's: then one node has their gradients.
        self._pieces = [pieces(p) for p in self.model.parameters() if isinstance(p, ShardedParameter)]
        with self._bare():
            self._installed = Installed(self.model, self.regions, self.devices, _pieces)
            self._split_forward = self.model.forward

    def remove_hooks(self) -> None:
        """Take them off."""
        if self._installed is not None:
            self._installed.uninstall()
        self._installed = None
        self._pieces = []

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The model with its own forward, or the one that a rewrite of the whole model gives it."""
        disguised = self.model.__dict__.pop("forward", None)
        try:
            yield
        finally:
            if disguised is not None:
                self.model.__dict__["forward"] = disguised

    def _install_again(self) -> None:
        """What was converted to another dtype has other buffers, of which every card has its own."""
        self.remove_hooks()
        self.add_hooks()


_HINTS = ("a smaller batch", "more cards or more memory per card", "torch.utils.checkpoint in the model's layers")


def _pieces(parameter: Tensor) -> list[Tensor]:
    assert isinstance(parameter, nn.Parameter)
    return pieces(parameter)


def _device_of(call: Call) -> torch.device | None:
    """Outputs come back to where the batch came from, as with one card."""
    tensors = flatten(call).tensors
    return tensors[0].device if tensors else None


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """An output to where it is wanted; of one in parts every part by itself: the lead card need not hold it whole."""
    if isinstance(tensor, Parted) and tensor.parts is not None and device != tensor.device:
        return torch.cat([part.to(device) for part in tensor.parts], -1)
    return tensor.to(device)
