"""A topology after its links were measured: planning and pools then believe what copies showed. Pure.

peer route lies, fails or is slower than the host    its link becomes HOST
measured far off what is stated                      its link gets the measured bandwidth
measured about as stated                             the link stays as it is, so that plans stay valid
"""

from __future__ import annotations

from dataclasses import replace

from poolrt.topology.catalog import link_preset
from poolrt.topology.topology import Link, Topology
from poolrt.transfer.measuring.measurement import Measurement

_FAR_OFF = 0.25
"""by more than this part of what is stated; two measurements of one link differ by a few percent"""


def corrected(topology: Topology, measurement: Measurement) -> Topology:
    """The topology with links as they proved to be. Cards stay."""
    stands_for_others = any(card.kind == "virtual" for card in topology.cards)
    proven = (_proven(link, measurement) for link in topology.links)
    links = tuple(proven) if stands_for_others else tuple(_rated(link, measurement) for link in proven)
    return replace(topology, links=links)


def _proven(link: Link, measurement: Measurement) -> Link:
    verdict = measurement.verdict(link.source, link.target)
    if verdict is None or verdict.usable:
        return link
    host = measurement.of_route("HOST", link.source, link.target, "one way")
    stated = link_preset("host")
    return replace(
        link,
        kind="HOST",
        bytes_per_s=host.reached_bytes_per_s if host else stated.bytes_per_s,
        latency_s=host.line.latency_s if host else stated.latency_s,
    )


def _rated(link: Link, measurement: Measurement) -> Link:
    reached = measurement.bytes_per_s(link.source, link.target)
    if reached is None or abs(reached - link.bytes_per_s) <= _FAR_OFF * link.bytes_per_s:
        return link
    return replace(link, bytes_per_s=reached)
