"""Cards: those of this machine, virtual ones on the CPU, shares of one GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from itertools import permutations

from poolrt.errors import ConfigurationError
from poolrt.topology.box import virtual_box
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.discover import discover_cuda
from poolrt.topology.request import CudaRequest, LogicalRequest, VirtualRequest, parse_cards
from poolrt.topology.route import route
from poolrt.topology.topology import Topology
from poolrt.transfer import devices
from poolrt.transfer.measuring.trusted import remembered
from poolrt.units import parse_nbytes
from poolrt.virtual_cards import backend, links

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
