"""From a profile to a plan, as the user asked for it; and plans that were made earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from poolrt.errors import InfeasibleError, PlanError
from poolrt.planning.limits import OutputCard, Spill
from poolrt.planning.options import PlanOptions
from poolrt.planning.plan import Plan
from poolrt.runtime.state.layers import Layer, layers_named


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked `shard` for."""

    micro_batches: int | Literal["auto"] = "auto"
    schedule: Literal["auto", "gpipe"] = "auto"
    batch_dim: int = 0
    optimizer: str = "adamw"
    spill: Spill = "auto"
    host_bytes: int = 0
    """what the host gives to `spill="auto"`"""
    stages: tuple[tuple[int, ...], ...] = ()
    """cards that run the same layers together, the lead card first; empty: every card runs layers of its own"""
    may_split: bool = False
    """whether there may be such stages although none were asked for, where that is better"""


def planning_options(options: Options, output_card: OutputCard, why_not_split: str = "") -> PlanOptions:
    """What the planner is told of what the user asked for."""
    return PlanOptions(
        micro_batches=options.micro_batches,
        schedule=options.schedule,
        optimizer=options.optimizer,
        splittable=not why_not_split,
        why_not_split=why_not_split,
        output_card=output_card,
        spill=options.spill,
        host_bytes=options.host_bytes,
    )


def card_of_outputs(device: torch.device | None, devices: Sequence[torch.device]) -> OutputCard:
    """Where whole outputs are put together, in the planner's words.

    Args:
        device: where the batch came from; None if nothing tells.
        devices: of the cards.
    """
    if device is None:
        return "last"
    return devices.index(device) if device in devices else "host"


def ways_to_fit(plan: Plan | None) -> list[str]:
    """What would make a step fit that ran out of memory under this plan."""
    ways = ["a smaller batch", "more cards or more memory per card"]
    if plan is not None and plan.micro_batches < plan.batch_size:
        ways.insert(1, f"more micro-batches than {plan.micro_batches} (smaller workspace)")
    return ways


def feasible(plan: Plan) -> Plan:
    """The plan, if it fits.

    Raises:
        InfeasibleError: if it does not.
    """
    if not plan.feasible:
        raise InfeasibleError(plan.reason)
    return plan


def layers_of(plan: Plan, model: nn.Module) -> list[Layer]:
    """The layers that a plan made earlier speaks of.

    Raises:
        PlanError: if the model has no such layer.
    """
    try:
        return layers_named(model, plan.card_of())
    except AttributeError as error:
        raise PlanError(f"the plan places a layer that the model has not: {error}; make a new one") from error


def checked(plan: Plan, layers: Sequence[Layer]) -> Plan:
    """A plan made earlier, after seeing that it places what the model calls.

    Raises:
        PlanError: if it does not.
    """
    names, planned = {layer.name for layer in layers}, set(plan.card_of())
    if names != planned:
        raise PlanError(
            f"the plan places layers {sorted(planned - names)[:3]} that the model does not call, or leaves out "
            f"{sorted(names - planned)[:3]}; make a new plan with poolrt.plan"
        )
    return plan
