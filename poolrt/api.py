"""The main path on one screen: discover or make cards, plan, shard, report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import permutations
from typing import Any, Literal

from torch import nn

from poolrt.arguments import TensorParallel, check_model, check_plan, check_spill, may_split, spill_of, stages_of
from poolrt.errors import ConfigurationError, ModelError
from poolrt.planning.plan import Plan
from poolrt.proof import proven
from poolrt.reporting import Report, make_report
from poolrt.runtime.batch_form import call_of, check_signature
from poolrt.runtime.decide import Options, decide
from poolrt.runtime.layers import find_layers
from poolrt.runtime.measure import measure, threads_per_lane
from poolrt.runtime.microbatch import batch_size_of
from poolrt.runtime.pooled import Pooled, pooled_of
from poolrt.runtime.split_layers import SplitLayers
from poolrt.topology.box import virtual_box
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.discover import discover_cuda
from poolrt.topology.host_memory import available_nbytes
from poolrt.topology.request import CudaRequest, LogicalRequest, VirtualRequest, parse_cards
from poolrt.topology.route import route
from poolrt.topology.topology import Topology
from poolrt.transfer import devices
from poolrt.transfer.copy import copy
from poolrt.transfer.measuring.trusted import remembered
from poolrt.units import parse_nbytes
from poolrt.verification import Verification, verify_step
from poolrt.virtual_cards import backend, links

__all__ = ["copy", "discover", "logical", "plan", "report", "shard", "verify", "virtual"]

DEFAULT_VIRTUAL_CARDS = 2
DEFAULT_VIRTUAL_MEMORY = "4GiB"


def discover() -> Topology:
    """The cards of this machine; POOLRT_CARDS overrides what is found.

    Without a GPU there is a warning, and two virtual cards of 4 GiB.
    """
    wanted = os.environ.get("POOLRT_CARDS")
    if wanted:
        return _requested(wanted)
    found = discover_cuda()
    if found.cards:
        return remembered(found)
    warnings.warn(
        f"poolrt: no CUDA GPU found; using {DEFAULT_VIRTUAL_CARDS} virtual cards of {DEFAULT_VIRTUAL_MEMORY} on the "
        "CPU. "
        "Choose others with poolrt.virtual(cards=..., memory=...) or POOLRT_CARDS=virtual:2x4GiB.",
        stacklevel=2,
    )
    return virtual(DEFAULT_VIRTUAL_CARDS, DEFAULT_VIRTUAL_MEMORY)


def _requested(text: str) -> Topology:
    request = parse_cards(text)
    if isinstance(request, VirtualRequest):
        return virtual(len(request.memory_bytes), list(request.memory_bytes))
    if isinstance(request, LogicalRequest):
        return logical(request.device, len(request.memory_bytes), list(request.memory_bytes))
    assert isinstance(request, CudaRequest)
    found = discover_cuda()
    missing = [index for index in request.indices if index >= len(found)]
    if missing:
        raise ConfigurationError(f"POOLRT_CARDS={text} names GPUs {missing}, but this machine has {len(found)}")
    return remembered(found.subset(request.indices))


def virtual(
    cards: int | None = None,
    memory: int | str | Sequence[int | str] | None = None,
    *,
    link: str | None = None,
    box: str | None = None,
    paced: bool = False,
) -> Topology:
    """Virtual cards on the CPU: real torch devices `vcard:0`, `vcard:1`, ... with a capacity each.

    Args:
        cards: how many, 1 to 16; None for 2, or as many as the box has.
        memory: one size for all, or one per card: bytes or text such as "4GiB". None for 4 GiB, or the real cards'.
        link: the link to plan with, such as "nvlink3x4"; it changes plans, and with `paced` the speed of copies.
            Over "host" a card cannot reach another's memory, so no tensor lies on both.
        box: a recorded box to plan with, such as "2x-rtx3090-nvlink": its cards, sizes and links.
        paced: copies between the cards, and with the host, take the time that the links state; only copies: compute
            is still the CPU's. Without it copies take what they take in memory.

    Raises:
        ConfigurationError: for a number of cards or a size that cannot be, an unknown box, or a box beside a number of
            cards or a link.
    """
    if box is None:
        count = DEFAULT_VIRTUAL_CARDS if cards is None else cards
        topology = virtual_topology(_sizes(count, DEFAULT_VIRTUAL_MEMORY if memory is None else memory), link)
    elif cards is not None or link is not None:
        raise ConfigurationError(f"box {box!r} says how many cards there are and how they are joined; leave that out")
    else:
        topology = virtual_box(box)
        if memory is not None:
            topology = virtual_box(box, _sizes(len(topology), memory))
    pairs = permutations(range(len(topology)), 2)
    refused = [pair for pair in pairs if route(topology, *pair).kind == "HOST"]
    backend.configure([card.memory_bytes for card in topology.cards], refused)
    if paced:
        links.pace(topology)
    devices.renew(topology)
    return topology


def logical(device: str = "cuda:0", cards: int = 2, memory: int | str | Sequence[int | str] = "8GiB") -> Topology:
    """Logical cards: shares of one GPU, for developing on one. A sharded model keeps to each share.

    Args:
        device: the GPU.
        cards: how many shares.
        memory: one size for all, or one per card.

    Raises:
        ConfigurationError: for a number of cards or a size that cannot be.
    """
    return logical_topology(device, _sizes(cards, memory))


def _sizes(cards: int, memory: int | str | Sequence[int | str]) -> list[int]:
    if isinstance(memory, str) or not isinstance(memory, Sequence):
        return [parse_nbytes(memory)] * cards
    if len(memory) != cards:
        raise ConfigurationError(f"{cards} cards need one memory size or {cards}, got {len(memory)}: {list(memory)}")
    return [parse_nbytes(size) for size in memory]


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
            of these by prediction, if `micro_batches` and `spill` are left open too.
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
    check_model(model)
    call = call_of(sample)
    check_signature(model, call)
    stages = stages_of(tensor_parallel, topology)
    check_spill(stages, spill)
    is_open = may_split(tensor_parallel, micro_batches, spill) and len(topology) > 1
    measured = measure(
        model,
        model.forward,
        find_layers(model, at_least=2 * len(stages or topology)),
        call,
        batch_size=batch_size_of(call, batch_dim) or 1,
        gathered=False,
        threads=threads_per_lane(topology),
    )
    options = Options(
        micro_batches=micro_batches,
        schedule=schedule,
        batch_dim=batch_dim,
        optimizer=optimizer,
        spill=spill_of(spill),
        host_bytes=_host_bytes(),
        stages=stages,
        may_split=is_open,
    )
    if is_open:
        return SplitLayers(model, call, measured, topology, options).choose("host", nullcontext)
    if stages:
        return SplitLayers(model, call, measured, topology, options).plan("host")
    return decide(measured.profile, topology, options, "host")


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
            of these by prediction, if `micro_batches` and `spill` are left open too.
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
    check_model(model)
    topology = proven(stated)
    if plan is not None:
        check_plan(plan, model, stated, topology)
    call = None if sample is None else call_of(sample)
    if call is not None:
        check_signature(model, call)
    stages = stages_of(tensor_parallel, topology) if plan is None else plan.stages
    check_spill(stages, spill)
    options = Options(
        micro_batches=micro_batches,
        schedule=schedule,
        batch_dim=batch_dim,
        optimizer=optimizer,
        spill=spill_of(spill),
        host_bytes=_host_bytes(),
        stages=stages,
        may_split=plan is None and may_split(tensor_parallel, micro_batches, spill),
    )
    Pooled(model, topology, options, plan).start(call)
    return model


def _host_bytes() -> int:
    """What the host gives to what does not fit the cards, unless the user says how much."""
    return available_nbytes() // 2


def report(model: nn.Module) -> Report:
    """What was predicted for `model` beside what was measured since it was sharded.

    Raises:
        ModelError: if the model is not sharded, or has not seen a batch yet.
    """
    pooled = pooled_of(model)
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
