"""Peer routes are used once they are proven: by a sharded model, and by a pool whose tensors lie on several cards."""

from __future__ import annotations

from poolrt.topology.topology import Topology
from poolrt.transfer import devices
from poolrt.transfer.measuring.effort import PROOF
from poolrt.transfer.measuring.trusted import trusted
from poolrt.virtual_cards import links


def proven(topology: Topology) -> Topology:
    """The topology with no other peer routes than those that deliver what they are given.

    GPUs are proven once since the machine was started. Virtual cards have nothing to prove unless they stand for a box.

    Raises:
        DriverError: if copies between a card and the host change bytes.
    """
    if all(card.kind == "cuda" for card in topology.cards):
        return trusted(topology)
    if links.are_paced() and all(card.kind == "virtual" for card in topology.cards):
        return trusted(topology, PROOF)
    devices.know(topology)
    return topology
