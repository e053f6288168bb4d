"""Which peer routes a model may use: only those over which known bytes have arrived.

trusted(topology)       proves what was not proven since the machine was started, and tells the routes of this process
remembered(topology)    the same without touching a card: what is not known yet stays as it is stated
"""

from __future__ import annotations

import logging

from poolrt.topology.route import route
from poolrt.topology.topology import Topology
from poolrt.transfer import routes
from poolrt.transfer.measuring.corrected import corrected
from poolrt.transfer.measuring.effort import QUICK, Effort
from poolrt.transfer.measuring.measure import all_pairs
from poolrt.transfer.measuring.measured import announce, measured, recalled
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.routes import PairChoice

_log = logging.getLogger("poolrt")


def trusted(topology: Topology, effort: Effort = QUICK) -> Topology:
    """The topology with no other peer routes than those that deliver, proven now unless they were before.

    Args:
        topology: the cards.
        effort: how much to copy if they were not; without figures every route that delivers is used.

    Raises:
        DriverError: if a card's own way from and to the host changes bytes.
    """
    if not has_peer_routes(topology):
        routes.current().learn(topology)
        return topology
    found = recalled(topology)
    if found is None:
        _log.info("the links of %d cards are proven and measured, once since the machine was started", len(topology))
        found = measured(topology, effort=effort)
    announce(found)
    routes.current().learn(topology, choices(found))
    return corrected(topology, found)


def remembered(topology: Topology) -> Topology:
    """The topology as far as it was proven before."""
    found = recalled(topology) if has_peer_routes(topology) else None
    return corrected(topology, found) if found else topology


def choices(found: Measurement) -> dict[tuple[int, int], PairChoice]:
    """For the routes of this process: what each pair takes at which size."""
    return {(x.source, x.target): PairChoice(kind_by_size=x.choice) for x in found.verdicts}


def has_peer_routes(topology: Topology) -> bool:
    """Whether any copy would go straight from card to card."""
    return any(route(topology, *pair).kind == "P2P" for pair in all_pairs(topology))
