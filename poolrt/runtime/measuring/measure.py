"""From a model and one batch to its profile: the probe in a thread of its own, with everything put back afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.planning.profile import Profile
from poolrt.runtime.batches.microbatch import Call
from poolrt.runtime.lanes.run_lanes import await_end
from poolrt.runtime.measuring.probe import Probed, probe
from poolrt.runtime.measuring.profile_model import in_call_order, make_profile
from poolrt.runtime.state.layers import Layer, opened
from poolrt.runtime.state.model_state import state_restored
from poolrt.runtime.state.thread_state import ThreadState
from poolrt.runtime.state.trees import flatten, map_tensors
from poolrt.topology.topology import Topology
from poolrt.transfer.move import move


@dataclass(frozen=True)
class Measured:
    """A profile, and the layers it speaks of in the order of their first call."""

    profile: Profile
    layers: tuple[Layer, ...]


def measure(
    model: nn.Module,
    forward: Callable[..., Any],
    layers: Sequence[Layer],
    call: Call,
    *,
    batch_size: int,
    gathered: bool,
    threads: int,
    in_place: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Measured:
    """Profile `model` with one batch, wherever its layers lie now; model, gradients and generators stay as they were.

    Args:
        model: the model.
        forward: its forward.
        layers: what may be placed; a layer whose children are called in its stead is opened up.
        call: the batch.
        batch_size: its number of samples.
        gathered: whether whole outputs are put together on a card.
        threads: how many of the host's threads one lane has.
        in_place: holds copies of tied parameters where other cards need them, while the probe runs.
    """
    devices = list(dict.fromkeys(parameter.device for parameter in model.parameters()))
    types = tuple(dict.fromkeys(device.type for device in devices if device.type != "cpu"))

    def once() -> Probed:
        with state_restored(model, devices), in_place():
            return _in_thread(types, threads, lambda: probe(model, forward, layers, _plain(call), to_layer))

    probed = once()
    if probed.unreached:
        finer = [part for layer in layers for part in (opened(layer) if layer in probed.unreached else [layer])]
        return measure(
            model, forward, finer, call, batch_size=batch_size, gathered=gathered, threads=threads, in_place=in_place
        )
    for _ in range(_repetitions(probed.total_s)):
        probed = probed.faster_of(once())
    ordered = in_call_order(layers, probed)
    input_nbytes = sum(tensor.nbytes for tensor in flatten(call).tensors)
    profile = make_profile(model, ordered, probed, batch_size=batch_size, input_nbytes=input_nbytes, gathered=gathered)
    return Measured(profile, tuple(ordered))


def _repetitions(total_s: float) -> int:
    """How often to probe again: short measurements are noisy and cheap to repeat."""
    return next((count for limit_s, count in ((1.0, 2), (12.0, 1)) if total_s < limit_s), 0)


def threads_per_lane(topology: Topology) -> int:
    """Threads for torch's operations in one lane: virtual cards share the host's cores; lanes on GPUs only launch."""
    if any(card.kind == "virtual" for card in topology.cards):
        return max(1, len(os.sched_getaffinity(0)) // len(topology.cards))
    return torch.get_num_threads()


def to_layer(layer: nn.Module, value: Any) -> Any:
    """`value` with its tensors where the parameters of `layer` are."""
    device = next(layer.parameters()).device
    return map_tensors(value, lambda tensor: move(tensor, device))


def _plain(call: Call) -> Call:
    """The batch without history; tensors made in inference mode as ordinary ones, which a backward may save."""

    def plain(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.is_inference() else tensor.detach()

    with torch.inference_mode(False):
        result: Call = map_tensors(call, plain)
    return result


def _in_thread(device_types: tuple[str, ...], threads: int, body: Callable[[], Probed]) -> Probed:
    """Run `body` as a lane would: in a new thread, with the caller's state and a lane's share of the cores."""
    state = ThreadState(device_types)
    results: list[Probed] = []
    failures: list[BaseException] = []

    def work() -> None:
        torch.set_num_threads(threads)
        try:
            results.append(state.run(torch.inference_mode(False)(body)))  # a backward is measured in any case
        except BaseException as error:
            failures.append(error)

    own_threads = torch.get_num_threads()
    thread = threading.Thread(target=work, name="probe")
    thread.start()
    thread.join()
    await_end([thread])
    torch.set_num_threads(own_threads)
    if failures:
        raise failures.pop()
    return results[0]
