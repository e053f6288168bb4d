"""The cards a benchmark runs on: virtual ones, or shares of the first GPU."""

from __future__ import annotations

import gc

import torch

import poolrt
from poolrt.units import parse_nbytes


def make_cards(count: int, memory: str, *, cuda: bool) -> poolrt.Topology:
    """`count` cards of one size.

    On a GPU every share is held to its size by poolrt; one share alone, which runs plain torch, by torch's own cap on
    the process.

    Args:
        count: how many.
        memory: of each, such as "3GiB".
        cuda: shares of cuda:0 instead of virtual cards.
    """
    if not cuda:
        return poolrt.virtual(cards=count, memory=memory)
    if count == 1:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_nbytes(memory) / whole))
    return poolrt.logical(device="cuda:0", cards=count, memory=memory)


def synchronize(topology: poolrt.Topology) -> None:
    """Waits until the cards have done what they were given."""
    if _on_gpu(topology):
        torch.cuda.synchronize()


def forget(topology: poolrt.Topology) -> None:
    """Gives back what the last trial held, its reference cycles and the GPU allocator's cache included."""
    gc.collect()
    if _on_gpu(topology):
        torch.cuda.empty_cache()


def _on_gpu(topology: poolrt.Topology) -> bool:
    return topology.cards[0].device.startswith("cuda")
