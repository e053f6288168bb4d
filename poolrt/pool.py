"""The pool as users make it: its tensors lie on several cards only where these were proven to reach each other."""

from __future__ import annotations

from poolrt.memory.pool import Pool as _Pool
from poolrt.proof import proven
from poolrt.topology.topology import Topology


class Pool(_Pool):
    """Memory on the cards of `topology`, and `host_memory` bytes of the host's.

    A card whose way to another changes bytes keeps its tensors to itself and the host.

    Args:
        topology: virtual cards, GPUs or logical cards.
        host_memory: how much of the host's memory may be used, in bytes or text such as "8GiB"; 0 for none.
        limits: for each card, the most the pool may take there; all of its memory by default.

    Raises:
        ConfigurationError: if the cards have no memory to give (recorded boxes), or the limits are not one per card.
        DriverError: if the driver refuses, or copies between a card and the host change bytes.
    """

    def _usable(self, topology: Topology) -> Topology:
        return proven(topology)
