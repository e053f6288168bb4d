"""What splitting changes of a model's costs, watched during one forward of the whole model, wherever it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.hooks import RemovableHandle

from poolrt.planning.profile import CallFacts, TiedParameter
from poolrt.planning.split import Split
from poolrt.planning.split_facts import CardWeights, RegionCall, SplitFacts
from poolrt.runtime.batches.microbatch import Call
from poolrt.runtime.measuring.measure import Measured
from poolrt.runtime.measuring.profile_model import layer_facts
from poolrt.runtime.regions.plan import Forked, RegionPlan, Rewrite, RowLinear, parameter_splits
from poolrt.runtime.regions.replica import parameter_of
from poolrt.runtime.regions.running.keyed import rates_in
from poolrt.runtime.state.layers import Layer, unique_tensors
from poolrt.runtime.state.memory_watch import MemoryWatch, granular
from poolrt.runtime.state.model_state import state_restored
from poolrt.runtime.state.trees import flatten, map_tensors


def split_facts(model: nn.Module, regions: RegionPlan, call: Call, measured: Measured) -> SplitFacts:
    """What the planner needs to know of a model that is to be split. Nothing is moved or changed.

    Args:
        model: whole, on whatever device.
        regions: how its layers are split.
        call: one whole batch.
        measured: with this batch, of the whole model.
    """
    device = next(model.parameters()).device
    here: Call = map_tensors(call, lambda tensor: tensor.detach().to(device))
    split = {rewrite.module: rewrite for region in regions.regions for rewrite in region.rewrites}
    return SplitFacts(
        profile=measured.profile,
        calls=tuple(_watched(model, split, measured, here)),
        weights=tuple(_weights(model, regions.splits, measured.layers, card) for card in range(regions.cards)),
        modules=tuple(split),
        rest=tuple(_modules_of_whole_parameters(model, regions.splits)),
        notes=(*regions.explain(), *_notes(model, split)),
    )


# ---- what regions read, keep and return


@dataclass
class _Watch:
    """The region that runs at the moment, and what has been seen of all."""

    model: nn.Module
    split: dict[str, Rewrite]
    call: int = -1
    """of the layers' calls so far, the last one's position"""
    running: list[_Running] = field(default_factory=list)
    done: list[RegionCall] = field(default_factory=list)
    counted: dict[int, StorageWeakRef] = field(default_factory=dict)
    started: list[float] = field(default_factory=list)
    """when each of the layers' calls began"""
    memory: MemoryWatch = field(default_factory=MemoryWatch)
    """counts operations"""
    in_parts: set[int] = field(default_factory=set)
    """addresses of storages that stay in parts on the cards"""
    kept: list[Tensor] = field(default_factory=list)
    """of which those are; they live as long as the watch, so that no other tensor gets their address"""

    def begin_layer(self) -> None:
        self.call += 1
        self.started.append(time.perf_counter())

    def begin(self, args: Any) -> None:
        inputs = [tensor for tensor in flatten(args).tensors if _address(tensor) not in self.in_parts]
        copied = sum(granular(tensor.nbytes) for tensor in inputs)
        self.running.append(
            _Running({_address(t) for t in inputs}, copied, time.perf_counter(), self.memory.operations)
        )

    def end(self, name: str, output: Any) -> None:
        running = self.running.pop()
        rewrite, tensors = self.split[name], flatten(output).tensors
        in_parts = isinstance(rewrite, Forked) and rewrite.outputs[:1] == ("parts",)
        if in_parts and tensors:
            self.in_parts.add(_address(tensors[0]))
            self.kept.append(tensors[0].detach())  # its history would hold this watch: a cycle never freed
        self.done.append(
            RegionCall(
                module=name,
                call=max(0, self.call),
                shares=_shares(self.model.get_submodule(name), rewrite),
                forward_s=time.perf_counter() - running.started,
                copied_nbytes=running.copied_nbytes,
                saved_nbytes=running.saved_nbytes,
                output_nbytes=sum(granular(tensor.nbytes) for tensor in tensors),
                in_parts=in_parts,
                operations=self.memory.operations - running.operations,
            )
        )

    def timed(self, calls: Sequence[CallFacts]) -> list[RegionCall]:
        """The regions, each as long as its part of its layer's call was here: that was measured where layers lie."""
        ends = [*self.started[1:], time.perf_counter()]
        here_s = [end - start for start, end in zip(self.started, ends, strict=True)]
        return [
            replace(region, forward_s=region.forward_s / here_s[region.call] * calls[region.call].forward_s)
            for region in self.done
        ]

    def pack(self, tensor: Tensor) -> None:
        """Autograd keeps `tensor`; nothing of it is kept here, since no backward will come."""
        storage = tensor.untyped_storage()
        if not self.running or storage.data_ptr() in self.running[-1].inputs or isinstance(tensor, nn.Parameter):
            return
        known = self.counted.get(storage._cdata)
        if known is None or known.expired():
            self.counted[storage._cdata] = StorageWeakRef(storage)
            self.running[-1].saved_nbytes += granular(storage.nbytes())


@dataclass
class _Running:
    inputs: set[int]
    """addresses of the storages that it reads whole: these are saved once, on the lead card, and copied to others"""
    copied_nbytes: int
    started: float
    operations: int
    """before it"""
    saved_nbytes: int = 0


def _watched(model: nn.Module, split: dict[str, Rewrite], measured: Measured, call: Call) -> list[RegionCall]:
    watch = _Watch(model, split)
    for tensor in (*model.parameters(), *model.buffers()):
        watch.counted[tensor.untyped_storage()._cdata] = StorageWeakRef(tensor.untyped_storage())
    devices = list(dict.fromkeys(parameter.device for parameter in model.parameters()))
    with ExitStack() as stack:
        stack.enter_context(state_restored(model, devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(watch.pack, _never))
        stack.enter_context(_hooked(watch, measured.layers))
        stack.enter_context(watch.memory)
        model(*call[0], **call[1])
        return watch.timed(measured.profile.calls)


def _never(_packed: Any) -> Tensor:
    raise AssertionError("no backward follows the forward that is watched")


@contextmanager
def _hooked(watch: _Watch, layers: Sequence[Layer]) -> Iterator[None]:
    handles: list[RemovableHandle] = [
        layer.module.register_forward_pre_hook(lambda module, args: watch.begin_layer()) for layer in layers
    ]
    for name in watch.split:
        module = watch.model.get_submodule(name)
        handles.append(
            module.register_forward_pre_hook(lambda module, args, kwargs: watch.begin((args, kwargs)), with_kwargs=True)
        )
        handles.append(module.register_forward_hook(lambda module, args, output, n=name: watch.end(n, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _shares(module: nn.Module, rewrite: Rewrite) -> tuple[float, ...]:
    """For each card its part of the region's matrices."""
    splits = {name: split for name, split in parameter_splits(rewrite).items() if not split.is_whole}
    weights = {name: parameter_of(module, name).numel() / split.size for name, split in splits.items()}
    cards = next(iter(parameter_splits(rewrite).values())).cards
    sums = [sum(weights[name] * splits[name].piece_sizes[card] for name in splits) for card in range(cards)]
    total = sum(sums)
    return tuple(part / total for part in sums) if total else (1 / cards,) * cards


# ---- weights


def _weights(model: nn.Module, splits: dict[str, Split] | Any, layers: Sequence[Layer], card: int) -> CardWeights:
    """Bytes of each layer on `card`; a tied parameter counts with its first layer, what is in no layer with the first.

    As `weigh_layers` of whole models.
    """
    split_of = {id(parameter): splits[name] for name, parameter in model.named_parameters() if name in splits}
    users: dict[int, list[str]] = {}
    for layer in layers:
        for tensor in unique_tensors((*layer.module.parameters(), *layer.module.buffers())):
            users.setdefault(id(tensor), []).append(layer.name)
    first = layers[0].name if layers else ""
    held: dict[str, list[tuple[Tensor, int]]] = {layer.name: [] for layer in layers}
    for tensor in unique_tensors((*model.parameters(), *model.buffers())):
        nbytes = _nbytes_on(tensor, split_of.get(id(tensor)), card)
        if nbytes:
            held[users.get(id(tensor), [first])[0]].append((tensor, nbytes))
    tied = tuple(
        TiedParameter(
            name=name,
            nbytes=_nbytes_on(parameter, split_of.get(id(parameter)), card),
            layers=tuple(users[id(parameter)]),
        )
        for name, parameter in model.named_parameters()
        if len(users.get(id(parameter), ())) > 1
    )
    return CardWeights(layers=tuple(layer_facts(name, tensors) for name, tensors in held.items()), tied=tied)


def _nbytes_on(tensor: Tensor, split: Split | None, card: int) -> int:
    """What of a parameter or buffer lies on `card`; what is not split, on the lead card."""
    if split is None:
        return 0 if card else granular(tensor.nbytes)
    return granular(tensor.nbytes // split.size * split.piece_sizes[card]) if split.size else 0


def _modules_of_whole_parameters(model: nn.Module, splits: Any) -> Iterator[str]:
    """Names of the modules that hold a parameter which is not split."""
    in_pieces = {id(parameter) for name, parameter in model.named_parameters() if name in splits}
    for name, module in model.named_modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if any(id(parameter) not in in_pieces for parameter in own):
            yield name


def _notes(model: nn.Module, split: dict[str, Rewrite]) -> Iterator[str]:
    """Sentences about what is not as on one card."""
    dropping = [name for name, rewrite in split.items() if _drops(model.get_submodule(name), rewrite)]
    if dropping:
        yield (
            f"dropout inside {len(dropping)} split layers ({dropping[0]}, ...) draws on every card for its own part: "
            "masks are other ones than on one card, with the same probability, so results agree statistically and not "
            "to the bit; the same seed gives the same masks, also where a checkpoint runs a layer again"
        )


def _drops(module: nn.Module, rewrite: Rewrite) -> bool:
    """Whether the module drops something on every card while it trains: by a dropout in it, or a probability it has."""
    if isinstance(rewrite, RowLinear):
        return False
    after = rewrite.dropout_after if isinstance(rewrite, Forked) else None
    return any(rate.is_positive for rate in rates_in(module, besides=after))
