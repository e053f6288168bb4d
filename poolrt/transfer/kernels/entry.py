"""The kernels on torch's tensors: checked, planned, started in torch's current stream.

Only for CUDA cards. On virtual cards and on the CPU torch's own copy_ serves, and these refuse. The tensors of one call
may be of two cards that reach each other's memory: the target's card does the work and reads from its peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

import poolrt.transfer.kernels.cuda_body as cuda_body  # not `from` the package: that would close a circle
from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.availability import available
from poolrt.transfer.kernels.launch import Lanes, Launch, plan_add, plan_copy, plan_many
from poolrt.transfer.kernels.tensors import layout_of, runs_of, type_name
from poolrt.transfer.layout import Layout
from poolrt.transfer.overlap import refuse_overlap, runs_overlap

_Plan = Callable[[Layout, str, Layout, str, Lanes], tuple[Launch, ...]]
_BLOCKS_PER_MULTIPROCESSOR = 16
"""twice as many as there is room for at once, so that none idles at the end"""


def copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Makes `target` equal to `source`, as target.copy_(source) for equal shapes: any strides, converted on the way.

    Returns once the work is in torch's current stream of the target's card. Autograd sees nothing of it.

    Raises:
        ConfigurationError: if the tensors overlap, their shapes differ, or kernels cannot serve them (see `available`).
    """
    _run(plan_copy, source, target)


def add(source: torch.Tensor, target: torch.Tensor) -> None:
    """Adds `source` to `target` with the bits that target.add_(source) has for equal shapes; otherwise as `copy`.

    Raises:
        ConfigurationError: as `copy`, and if torch would not add these types in place.
    """
    _run(plan_add, source, target)


def copy_many(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copies every (source, target) in one launch: contiguous, of one type and size each, all targets on one card.

    The runs' addresses travel to the card first, so it pays from a few dozen pairs on.

    Raises:
        ConfigurationError: if a pair is not of that kind, or targets overlap one another or a source.
    """
    if not pairs:
        return
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    device, peers = _devices(sources, targets)
    runs = runs_of(sources, targets)
    if runs_overlap(runs):
        raise ConfigurationError(f"of {len(runs)} copies, a target overlaps another or a source; clone() the source")
    launch = plan_many(runs, _lanes(device.index))
    if launch is None:
        return
    with _after_peers(device, peers):
        table = torch.from_numpy(launch.table).pin_memory().to(device, non_blocking=True)
        cuda_body.run_many(launch, table.data_ptr(), device.index, torch.cuda.current_stream(device).cuda_stream)


def _run(plan: _Plan, source: torch.Tensor, target: torch.Tensor) -> None:
    device, peers = _devices([source], [target])
    layouts = layout_of(target), layout_of(source)
    launches = plan(layouts[0], type_name(target.dtype), layouts[1], type_name(source.dtype), _lanes(device.index))
    if not launches:
        return
    refuse_overlap(*layouts)
    with _after_peers(device, peers):
        stream = torch.cuda.current_stream(device).cuda_stream
        for launch in launches:
            cuda_body.run(launch, device.index, stream)


def _devices(
    sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
) -> tuple[torch.device, set[torch.device]]:
    """The card that all targets are on, and the other cards that sources are on."""
    homes = {tensor.device for tensor in targets}
    origins = {tensor.device for tensor in sources}
    if len(homes) > 1:
        raise ConfigurationError(f"targets of one launch are on one card, these on {sorted(map(str, homes))}")
    for device in homes | origins:
        if reason := available(device):
            raise ConfigurationError(f"kernels cannot serve {device}: {reason}; use target.copy_(source)")
    (home,) = homes
    return home, origins - homes


@cache
def _lanes(device: int) -> Lanes:
    properties = torch.cuda.get_device_properties(device)
    return Lanes(most_blocks=_BLOCKS_PER_MULTIPROCESSOR * properties.multi_processor_count)


@contextmanager
def _after_peers(device: torch.device, peers: set[torch.device]) -> Iterator[None]:
    """Work started inside comes after what the peers' current streams have now, and before what they get later.

    torch's copy between cards orders the two streams in the same way, so a source may be overwritten or freed next.
    """
    mine = torch.cuda.current_stream(device)
    theirs = [torch.cuda.current_stream(peer) for peer in peers]
    for peer, stream in zip(peers, theirs, strict=True):
        _open_peer(device, peer)
        mine.wait_stream(stream)
    with torch.cuda.device(device):
        yield
    for stream in theirs:
        stream.wait_stream(mine)


@cache
def _open_peer(device: torch.device, peer: torch.device) -> None:
    """Lets the cards use each other's memory.

    torch does so before its first copy between them, also for segments that grow (expandable_segments), which
    cudaDeviceEnablePeerAccess alone would not reach.

    Raises:
        ConfigurationError: if the driver refuses.
    """
    if not torch.cuda.can_device_access_peer(device, peer):
        raise ConfigurationError(f"{device} cannot read the memory of {peer}; use target.copy_(source)")
    for source, target in ((device, peer), (peer, device)):
        torch.zeros(1, device=source).to(target)
