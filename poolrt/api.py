"""The main path on one screen: discover or make cards, plan, shard, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

from torch import nn

from poolrt.arguments import TensorParallel, check_plan, options_of, placeable
from poolrt.cards import discover, logical, virtual
from poolrt.errors import ModelError
from poolrt.planning.plan import Plan
from poolrt.proof import proven
from poolrt.reporting import Report, make_report
from poolrt.runtime.batches.batch_form import call_of, check_signature
from poolrt.runtime.batches.microbatch import batch_size_of
from poolrt.runtime.measuring.measure import measure, threads_per_lane
from poolrt.runtime.pooled import Pooled, pooled_of
from poolrt.runtime.split_layers import SplitLayers
from poolrt.runtime.state.compiled import behind_compile, nothing_compiled
from poolrt.runtime.state.layers import find_layers
from poolrt.topology.topology import Topology
from poolrt.transfer.copy import copy
from poolrt.verification import Verification, verify_step

__all__ = ["copy", "discover", "logical", "plan", "report", "shard", "verify", "virtual"]


def plan(
    model: nn.Module,
    sample: Any,
    topology: Topology | None = None,
    *,
    micro_batches: int | Literal["auto"] = "auto",
    schedule: Literal["auto", "gpipe"] = "auto",
    tensor_parallel: TensorParallel = "auto",
    batch_dim: int = 0,
    optimizer: str = "adamw",
    spill: Literal["auto", "never"] | int | str = "auto",
) -> Plan:
    """Which layers would go where and what it would cost. Moves nothing; the model runs one probe where it is.

    Args:
        model: any module with weights.
        sample: one batch as you would give it to the model: a dict, a tuple, or one value.
        topology: the cards; None discovers them.
        micro_batches: a number, or "auto".
        schedule: "auto" is "gpipe".
        tensor_parallel: over how many cards each layer is split: 2 of 4 cards make two stages of two, 4 one stage; or
            the cards of each stage, such as [[0, 1], [2]]. 1: whole layers go to different cards. "auto": the better
            of these by prediction, if `micro_batches` and `spill` are left open too; on virtual cards layers are split
            only if they do not fit whole.
        batch_dim: the dimension of inputs along which samples lie.
        optimizer: what will train it: "adamw", "sgd", ...; "none" for inference.
        spill: where to put what does not fit the cards: "auto" (other cards, then the host), "never", or how much
            the host may hold, in bytes or as text such as "8GiB".

    Returns:
        A plan; see `feasible` and `explain()`.

    Raises:
        ModelError: if the model cannot be placed.
        SampleError: if the sample does not fit the model's forward.
    """
    topology = discover() if topology is None else topology
    model = placeable(model)
    call = call_of(sample)
    check_signature(model, call)
    options = options_of(
        topology,
        micro_batches=micro_batches,
        schedule=schedule,
        tensor_parallel=tensor_parallel,
        batch_dim=batch_dim,
        optimizer=optimizer,
        spill=spill,
    )
    with nothing_compiled():
        measured = measure(
            model,
            model.forward,
            find_layers(model, at_least=2 * len(options.stages or topology)),
            call,
            batch_size=batch_size_of(call, batch_dim) or 1,
            gathered=False,
            threads=threads_per_lane(topology),
        )
        return SplitLayers(model, call, measured, topology, options).best("host", nullcontext)


def shard(
    model: nn.Module,
    *,
    topology: Topology | None = None,
    sample: Any = None,
    plan: Plan | None = None,
    micro_batches: int | Literal["auto"] = "auto",
    schedule: Literal["auto", "gpipe"] = "auto",
    tensor_parallel: TensorParallel = "auto",
    batch_dim: int = 0,
    optimizer: str = "adamw",
    spill: Literal["auto", "never"] | int | str = "auto",
) -> nn.Module:
    """Spread `model` over the cards. Returns the same object: same class, same parameters, same state_dict.

    Without `sample` the weights are placed by size at once, and the plan is made with the first batch.

    Args:
        model: any module with weights.
        topology: the cards; None discovers them (POOLRT_CARDS overrides).
        sample: one batch as you would give it to the model.
        plan: a plan made by `poolrt.plan` for this model and topology.
        micro_batches: a number, or "auto".
        schedule: "auto" is "gpipe".
        tensor_parallel: over how many cards each layer is split: 2 of 4 cards make two stages of two, 4 one stage; or
            the cards of each stage, such as [[0, 1], [2]]. 1: whole layers go to different cards. "auto": the better
            of these by prediction, if `micro_batches` and `spill` are left open too; on virtual cards layers are split
            only if they do not fit whole.
        batch_dim: the dimension of inputs along which samples lie.
        optimizer: what will train it; its state is planned for.
        spill: where to put what does not fit the cards: "auto" (other cards, then the host), "never", or how much
            the host may hold, in bytes or as text such as "8GiB".

    Raises:
        ModelError: if the model has no weights, has them on meta, or is sharded already.
        SampleError: if the sample does not fit the model's forward.
        PlanError: if the plan is for another model or topology.
        InfeasibleError: if no plan fits.
        DriverError: if copies between a GPU and the host change bytes.
    """
    stated = discover() if topology is None else topology
    original = placeable(model)
    topology = proven(stated)
    if plan is not None:
        check_plan(plan, original, stated, topology)
    call = None if sample is None else call_of(sample)
    if call is not None:
        check_signature(original, call)
    options = options_of(
        topology,
        micro_batches=micro_batches,
        schedule=schedule,
        tensor_parallel=tensor_parallel,
        batch_dim=batch_dim,
        optimizer=optimizer,
        spill=spill,
    )
    Pooled(original, topology, options, plan).start(call)
    return model


def report(model: nn.Module) -> Report:
    """What was predicted for `model` beside what was measured since it was sharded.

    Raises:
        ModelError: if the model is not sharded, or has not seen a batch yet.
    """
    pooled = pooled_of(behind_compile(model))
    if pooled is None or pooled.plan is None:
        raise ModelError(f"{type(model).__name__} is not sharded or has seen no batch: nothing to report yet")
    return make_report(pooled.plan, pooled.devices, pooled.step_s, pooled.crossed)


def verify(
    model_fn: Callable[[], nn.Module],
    sample: Any,
    *,
    topology: Topology | None = None,
    micro_batches: int | Literal["auto"] = "auto",
    tensor_parallel: TensorParallel = "auto",
    batch_dim: int = 0,
) -> Verification:
    """Prove it on your own model: one step sharded against one unsharded, every output and every gradient.

    Args:
        model_fn: makes the model; called once, its result runs where it is made.
        sample: one batch as you would give it to the model.
        topology: the cards; None discovers them.
        micro_batches: a number, or "auto".
        tensor_parallel: over how many cards each layer is split; see `shard`.
        batch_dim: the dimension of inputs along which samples lie.

    Returns:
        What was compared; see `ok`, and print it.
    """
    cards = discover() if topology is None else topology

    def pool(model: nn.Module) -> nn.Module:
        return shard(
            model,
            topology=cards,
            sample=sample,
            micro_batches=micro_batches,
            tensor_parallel=tensor_parallel,
            batch_dim=batch_dim,
        )

    return verify_step(model_fn, sample, pool, lambda model: report(model).plan)
