"""What was measured of the cards, put beside what was seen of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from poolrt.topology.facts import CardFacts, CopyProof, Machine, PairFacts
from poolrt.topology.sources.nvml_counters import nvlink_counters
from poolrt.topology.topology import Topology
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof


def with_measurement(machine: Machine, topology: Topology, measurement: Measurement) -> Machine:
    """The machine with the bandwidth and the proof of every pair that was measured.

    Args:
        machine: cards in any order, those that CUDA shows with their `cuda_index`.
        topology: the cards that were measured, on devices "cuda:0", ...
        measurement: numbered as the topology.
    """
    by_device = {f"cuda:{card.cuda_index}": card.index for card in machine.cards if card.cuda_index is not None}
    return _with_proofs(machine, [by_device.get(card.device) for card in topology.cards], measurement)


def proofs_of_virtual_cards(topology: Topology, measurement: Measurement) -> Machine:
    """Virtual cards as a machine of which nothing is known but what was measured."""
    machine = Machine(cards=tuple(CardFacts(index=card.index, name=card.name) for card in topology.cards))
    return _with_proofs(machine, [card.index for card in topology.cards], measurement)


def _with_proofs(machine: Machine, numbers: Sequence[int | None], measurement: Measurement) -> Machine:
    """`numbers` lead from the measurement's cards to the machine's; None is a card that the machine does not have."""
    known = {(pair.source, pair.target): pair for pair in machine.pairs}
    for source, first in enumerate(numbers):
        for target, second in enumerate(numbers):
            if first is not None and second is not None and first != second:
                pair = known.get((first, second), PairFacts(source=first, target=second))
                known[first, second] = _with_facts(pair, measurement, source, target)
    return replace(machine, pairs=tuple(known.values()))


def _with_facts(pair: PairFacts, measurement: Measurement, source: int, target: int) -> PairFacts:
    proofs = [x for x in measurement.proofs if (x.source, x.target) == (source, target)]
    return replace(
        pair,
        measured_bytes_per_s=measurement.bytes_per_s(source, target) or pair.measured_bytes_per_s,
        proof=_worst([x for x in proofs if x.route == "P2P"] or proofs) or pair.proof,
    )


def _worst(proofs: Sequence[Proof]) -> CopyProof | None:
    """A copy that failed or lied counts before the others, then the largest."""
    if not proofs:
        return None
    worst = max(proofs, key=lambda proof: (proof.failure is not None, proof.wrong_nbytes, proof.nbytes))
    return CopyProof(
        nbytes=worst.nbytes,
        wrong_nbytes=worst.wrong_nbytes,
        nvlink_nbytes=worst.nvlink_nbytes,
        failure=worst.failure,
    )


@contextmanager
def sent_nbytes_of(machine: Machine, topology: Topology) -> Iterator[Callable[[int], int | None]]:
    """Reads the NVLink byte counters of the topology's cards while the block lasts."""
    by_device = {f"cuda:{card.cuda_index}": card.uuid for card in machine.cards if card.cuda_index is not None}
    with nvlink_counters() as counters:

        def read(card: int) -> int | None:
            uuid = by_device.get(topology.cards[card].device)
            return counters.sent_nbytes(uuid) if counters and uuid else None

        yield read
