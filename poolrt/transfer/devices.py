"""What the transfer room keeps about devices, when they are known and when they are replaced."""

from __future__ import annotations

from poolrt.topology.topology import Topology
from poolrt.transfer import bounce, routes, streams


def know(topology: Topology) -> None:
    """Copies between these cards go as the topology says; a link that failed before stays lost."""
    routes.current().learn(topology)


def renew(topology: Topology) -> None:
    """These cards are new, whatever their devices were before: no link is lost, no stream or buffer is left."""
    for device_type in {card.device.partition(":")[0] for card in topology.cards}:
        routes.current().forget(device_type)
        bounce.release(device_type)
        streams.release(device_type)
    know(topology)
