"""The regions of a user's model, from a batch as the user gives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from poolrt.errors import ModelError
from poolrt.runtime.batches.microbatch import Call, batch_size_of, scatter
from poolrt.runtime.regions.finding.find import find_regions
from poolrt.runtime.regions.plan import RegionPlan
from poolrt.runtime.state.trees import map_tensors


def regions_of(
    model: nn.Module,
    call: Call,
    shares: Sequence[float],
    batch_dim: int,
    devices: Sequence[torch.device] | None = None,
) -> RegionPlan:
    """How `model` is split over the cards, each rewrite proven. Nothing is moved or changed.

    Args:
        model: on whatever device.
        call: a batch; its first sample is enough.
        shares: for each card how much it gets relative to the others.
        batch_dim: the dimension of inputs along which samples lie.
        devices: where rewrites are proven; the host unless given, and where they have no room for it.

    Raises:
        ModelError: if nothing of the model can be split.
    """
    args, kwargs = _one_sample(model, call, batch_dim)

    def run() -> Any:
        return model(*args, **kwargs)

    with without_cache(model), torch.inference_mode(False):
        try:
            found = find_regions(model, run, shares, devices)
        except torch.OutOfMemoryError:
            found = None
        if found is None:  # not while the error is handled: its frames hold what did not fit
            found = find_regions(model, run, shares)
    if not found.regions:
        raise ModelError(_nothing_found(model, found))
    return found


def _one_sample(model: nn.Module, call: Call, batch_dim: int) -> Call:
    """The batch cut down to its first sample, on the model's device, and not asking for a cache."""
    samples = batch_size_of(call, batch_dim) or 1
    first = scatter(call, samples, batch_dim)[0]
    device = next(model.parameters()).device
    args, kwargs = map_tensors(first, lambda tensor: tensor.detach().to(device))
    return args, {**kwargs, "use_cache": False} if kwargs.get("use_cache") else kwargs


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Models of transformers meanwhile make no cache of keys and values unless they are told to."""
    configs = {
        id(config): config for module in model.modules() if (config := module.__dict__.get("config")) is not None
    }
    caching = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _nothing_found(model: nn.Module, found: RegionPlan) -> str:
    reasons = "; ".join(map(str, found.refused[:3])) or "it has no attention, feed-forward or large linear layer"
    return (
        f"no layer of this {type(model).__name__} can be split over {found.cards} cards: {reasons}. "
        "Leave tensor_parallel out: whole layers then go to different cards"
    )
