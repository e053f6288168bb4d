"""What is known of the ways between cards: from what was measured before, or measured now and kept.

measured(topology)    kept for these cards since the machine was started?  -> that
                      else prove, time, judge, keep                        -> this
announce(...)         one line in the log for every peer route that is not used
"""

from __future__ import annotations

import logging

from poolrt.errors import DriverError
from poolrt.keeping import cache_directory
from poolrt.topology.identity import Identity, identify
from poolrt.topology.topology import Topology
from poolrt.transfer.measuring.cache import MeasurementFile
from poolrt.transfer.measuring.effort import QUICK, Effort
from poolrt.transfer.measuring.measure import Pair, measure
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.probe import SentNbytes

_LOG = logging.getLogger("poolrt")


def recalled(topology: Topology) -> Measurement | None:
    """What was measured of these very cards before; None if nothing was, or it no longer holds."""
    file = _file_for(identify(topology))
    return file.read().measurement if file else None


def measured(
    topology: Topology,
    *,
    effort: Effort = QUICK,
    fresh: bool = False,
    keep_virtual: bool = False,
    sent_nbytes: SentNbytes = lambda card: None,
) -> Measurement:
    """What is known of the ways between these cards, measured now if nothing is.

    Args:
        topology: the cards, which must be there.
        effort: sizes, repeats and seconds, if it is measured now.
        fresh: measure even if something is kept.
        keep_virtual: keep what is measured of virtual cards too; for GPUs it always is.
        sent_nbytes: reads a card's NVLink byte counters, if it is measured now.
    """
    identity = identify(topology)
    file = _file_for(identity if keep_virtual or (identity and not identity.virtual) else None)
    if file is None:
        return measure(topology, effort=effort, sent_nbytes=sent_nbytes)
    kept = file.read()
    if kept.measurement is not None and not fresh:
        return kept.measurement

    def note(pair: Pair) -> None:
        file.trying(pair, kept.deadly)

    found = measure(topology, effort=effort, distrusted=kept.deadly, before_proof=note, sent_nbytes=sent_nbytes)
    file.keep(found)
    return found


def announce(measurement: Measurement) -> None:
    """Log each peer route that is not used, one line each.

    Raises:
        DriverError: if a card's own way from and to the host changes bytes: then there is no way to go round.
    """
    for proof in measurement.proofs:
        if proof.route == "HOST" and not proof.good:
            found = proof.failure or f"{proof.wrong_nbytes} bytes of {proof.nbytes} were wrong"
            way = "and back" if proof.source == proof.target else f"and on to card {proof.target}"
            raise DriverError(
                f"copies from card {proof.source} to the host {way} cannot be trusted: {found}. `poolrt doctor` looks "
                "for the cause; until it is found leave the card out, for example with POOLRT_CARDS=cuda:0,1"
            )
    for verdict in measurement.verdicts:
        if not verdict.usable:
            _LOG.warning("%s", verdict.sentence)


def _file_for(identity: Identity | None) -> MeasurementFile | None:
    return MeasurementFile(cache_directory(), identity) if identity else None
