"""Proves and times the ways between cards: every ordered pair, every route, one way and both ways at once.

prove    each peer route: does what is sent arrive?          a route that lies or fails is not timed
time     size by size, as far as the budget of seconds goes
judge    from proofs and lines to the routes to take
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind, route
from poolrt.topology.topology import Topology
from poolrt.transfer import bounce
from poolrt.transfer.copy import copy_over
from poolrt.transfer.figures import Direction, Sample, summarize
from poolrt.transfer.leg import Copier, HungError, Leg, make_leg
from poolrt.transfer.measurement import Measurement
from poolrt.transfer.pattern import WORD_NBYTES, Patterns
from poolrt.transfer.probe import PROBE_NBYTES, SentNbytes, prove, prove_host
from poolrt.transfer.stopwatch import time_copies
from poolrt.transfer.verdict import Proof, judge
from poolrt.units import KIB, MIB, format_nbytes

Pair = tuple[int, int]

_SHARE_OF_FREE_MEMORY = 8
"""a buffer takes at most one part in so many of what is free on a card; a card has two"""
_FEWEST_POINTS = 2
"""sizes that are timed however little time there is: a line needs two points"""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is copied."""

    sizes: tuple[int, ...] = tuple(KIB << shift for shift in range(0, 17, 2))
    """bytes of the timed copies, smallest first, multiples of 8: 1 KiB, 4 KiB, ... 64 MiB"""
    probe_sizes: tuple[int, ...] = PROBE_NBYTES
    """bytes of the copies of known content over a peer route"""
    host_probe_sizes: tuple[int, ...] = (4 * MIB,)
    """bytes of those through the bounce buffers, which are ours: enough to use each buffer twice"""
    repeats: int = 5
    """copies of one size, of which the median counts"""
    seconds: float = 25.0
    """for all timed copies together; what does not fit is left out, large sizes first"""
    directions: tuple[Direction, ...] = ("one way", "both ways")
    """none to prove alone"""

    def __post_init__(self) -> None:
        sizes = (*self.sizes, *self.probe_sizes, *self.host_probe_sizes)
        if any(nbytes <= 0 or nbytes % WORD_NBYTES for nbytes in sizes) or list(self.sizes) != sorted(set(self.sizes)):
            raise ConfigurationError(f"sizes must be multiples of 8 bytes and ascend, got {self.sizes}")
        if not self.sizes or self.repeats < 1 or self.seconds <= 0:
            raise ConfigurationError(f"nothing can be measured with {self}")


FULL = Effort()
QUICK = Effort(
    sizes=(4 * KIB, 256 * KIB, 4 * MIB, 16 * MIB), repeats=3, seconds=5.0, probe_sizes=(1 * MIB, 64 * MIB)
)  # fmt: skip

PROOF = Effort(probe_sizes=(1 * MIB, 64 * MIB), directions=())


def measure(
    topology: Topology,
    *,
    effort: Effort = FULL,
    pairs: Sequence[Pair] | None = None,
    distrusted: Sequence[Pair] = (),
    before_proof: Callable[[Pair], None] = lambda pair: None,
    sent_nbytes: SentNbytes = lambda card: None,
    copier: Copier = copy_over,
) -> Measurement:
    """Prove and time the ways between cards, which must be there.

    Args:
        topology: the cards.
        effort: sizes, repeats and seconds.
        pairs: ordered pairs of cards; None for all, and each device by itself.
        distrusted: pairs whose peer route is not touched and counts as failing.
        before_proof: told each pair before its peer route is first used.
        sent_nbytes: reads a card's NVLink byte counters.
        copier: queues a copy by a route.

    Raises:
        ConfigurationError: for a pair of cards that are not there.
    """
    wanted = all_pairs(topology) if pairs is None else list(dict.fromkeys(pairs))
    for pair in wanted:
        routes_of(topology, *pair)
    return _Bench(topology, copier, effort, sent_nbytes).run(wanted, distrusted, before_proof)


def all_pairs(topology: Topology) -> list[Pair]:
    """Every ordered pair of cards on different devices, and one card of each device with itself."""
    first_on = {card.device: card.index for card in reversed(topology.cards)}
    pairs = permutations(topology.cards, 2)
    return [(card, card) for card in sorted(first_on.values())] + [
        (source.index, target.index) for source, target in pairs if source.device != target.device
    ]


def routes_of(topology: Topology, source: int, target: int) -> tuple[RouteKind, ...]:
    """The routes there are from card to card. Within one device there is nothing but the device's own copy."""
    kind = route(topology, source, target).kind
    return ("P2P", "HOST") if kind == "P2P" else (kind,)


class _Bench:
    """Two buffers on every card, and what was found so far."""

    def __init__(self, topology: Topology, copier: Copier, effort: Effort, sent_nbytes: SentNbytes) -> None:
        self._topology, self._copier, self._sent_nbytes = topology, copier, sent_nbytes
        self._effort = _limited(effort, _room(topology))
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._largest = max(*self._effort.sizes, *self._effort.probe_sizes, *self._effort.host_probe_sizes)
        self._patterns = Patterns(self._largest)
        self._samples: list[Sample] = []
        self._proofs: list[Proof] = []
        self._hung: set[int] = set()

    def run(self, pairs: list[Pair], distrusted: Sequence[Pair], before_proof: Callable[[Pair], None]) -> Measurement:
        for card in sorted({card for pair in pairs for card in pair}):
            self._proofs.append(prove_host(card, self._into(card), self._patterns))
        peers = [pair for pair in pairs if "P2P" in routes_of(self._topology, *pair)]
        for pair in peers:
            if pair in distrusted:
                self._fail("P2P", pair, 0, "the process that tried it before did not live to see the end")
            else:
                before_proof(pair)
                self._prove("P2P", pair, self._effort.probe_sizes)
        for pair in pairs:
            if "HOST" in routes_of(self._topology, *pair):
                self._prove("HOST", pair, self._effort.host_probe_sizes)
        self._time(list(self._curves(pairs)))
        self._clear()
        return self._result(peers)

    def _clear(self) -> None:
        """Give the buffers back to the cards, past torch's caches, which would keep them from pools."""
        self._buffers.clear()
        if self._hung:
            return  # giving memory back waits for all copies of a GPU
        for device_type in {torch.device(card.device).type for card in self._topology.cards}:
            torch.get_device_module(device_type).empty_cache()

    def _prove(self, kind: RouteKind, pair: Pair, sizes: Sequence[int]) -> None:
        if self._hung & set(pair):
            return
        try:
            leg = self._leg(kind, pair)
            for proof in prove(leg, *pair, self._patterns, sizes, self._counters_of(kind)):
                self._proofs.append(proof)
        except HungError:
            self._hung |= set(pair)
        bounce.release()

    def _counters_of(self, kind: RouteKind) -> SentNbytes:
        """Only peer copies are to be seen on NVLinks."""
        return self._sent_nbytes if kind == "P2P" else lambda card: None

    def _curves(self, pairs: list[Pair]) -> Iterator[tuple[Direction, RouteKind, Pair]]:
        """What is timed: in one direction every pair, in both at once those whose way back is wanted too."""
        for direction in self._effort.directions:
            for source, target in pairs:
                if direction == "one way" or (source < target and (target, source) in pairs):
                    for kind in routes_of(self._topology, source, target):
                        yield direction, kind, (source, target)

    def _time(self, curves: list[tuple[Direction, RouteKind, Pair]]) -> None:
        end = time.monotonic() + self._effort.seconds
        for position, (direction, kind, pair) in enumerate(curves):
            back = (pair[1], pair[0])
            ways = [pair] if direction == "one way" else [pair, back]
            if self._hung & set(pair) or (kind == "P2P" and not all(map(self._proven, ways))):
                continue
            share_s = (end - time.monotonic()) / (len(curves) - position)
            legs = [self._leg(kind, way) for way in ways]
            try:
                for nbytes, seconds in self._walk(legs, share_s):
                    self._samples.append(
                        Sample(
                            route=kind,
                            source=pair[0],
                            target=pair[1],
                            direction=direction,
                            nbytes=nbytes,
                            seconds=seconds,
                        )
                    )
            except RuntimeError as error:
                self._hung |= set(pair) if isinstance(error, HungError) else set()
                self._fail(kind, pair, self._effort.sizes[-1], str(error).partition("\n")[0])
            # Torch keeps pinned memory once it has some, so every pair uses that of the pair before.
            bounce.release()

    def _proven(self, pair: Pair) -> bool:
        proofs = [proof for proof in self._proofs if (proof.route, proof.source, proof.target) == ("P2P", *pair)]
        return bool(proofs) and all(proof.good for proof in proofs)

    def _walk(self, legs: list[Leg], share_s: float) -> Iterator[tuple[int, float]]:
        """(bytes, seconds) of copy after copy, from the smallest size up, while there is time."""
        end = time.monotonic() + share_s
        sizes = self._effort.sizes
        for position, nbytes in enumerate(sizes):
            seconds = time_copies(legs, nbytes)  # the first of a size makes buffers and wakes links: not counted
            for repeat in range(self._effort.repeats):
                if repeat and time.monotonic() > end:
                    break
                seconds = time_copies(legs, nbytes)
                yield nbytes, seconds
            growth = sizes[min(position + 1, len(sizes) - 1)] / nbytes
            if position + 1 >= _FEWEST_POINTS and time.monotonic() + 2 * growth * seconds > end:
                return

    def _result(self, peers: list[Pair]) -> Measurement:
        figures = summarize(self._samples)
        verdicts = []
        for source, target in peers:
            lines = {
                x.route: x.line
                for x in figures
                if (x.source, x.target, x.direction) == (source, target, "one way")
            }  # fmt: skip
            proofs = [x for x in self._proofs if (x.route, x.source, x.target) == ("P2P", source, target)]
            verdicts.append(judge(proofs, lines, source, target))
        return Measurement(
            devices=tuple(card.device for card in self._topology.cards),
            figures=figures,
            proofs=tuple(self._proofs),
            verdicts=tuple(verdicts),
        )

    def _fail(self, kind: RouteKind, pair: Pair, nbytes: int, why: str) -> None:
        self._proofs.append(Proof(route=kind, source=pair[0], target=pair[1], nbytes=nbytes, failure=why))

    def _leg(self, kind: RouteKind, pair: Pair) -> Leg:
        return make_leg(self._copier, kind, self._out_of(pair[0]), self._into(pair[1]))

    def _out_of(self, card: int) -> Tensor:
        return self._buffers_of(card)[0]

    def _into(self, card: int) -> Tensor:
        return self._buffers_of(card)[1]

    def _buffers_of(self, card: int) -> tuple[Tensor, Tensor]:
        if card not in self._buffers:
            words, device = self._largest // WORD_NBYTES, self._topology.cards[card].device
            out, into = (torch.empty(words, dtype=torch.int64, device=device) for _ in range(2))
            self._buffers[card] = out, into
        return self._buffers[card]


def _room(topology: Topology) -> int:
    """Bytes that a buffer may have on the fullest card."""
    devices = dict.fromkeys(torch.device(card.device) for card in topology.cards)
    free = [torch.get_device_module(device).mem_get_info(device)[0] for device in devices]
    return min(free) // _SHARE_OF_FREE_MEMORY


def _limited(effort: Effort, room: int) -> Effort:
    """What fits into buffers of `room` bytes.

    Raises:
        ConfigurationError: if the smallest copy does not.
    """
    sizes, probes, host_probes = (
        tuple(x for x in sizes if x <= room) for sizes in (effort.sizes, effort.probe_sizes, effort.host_probe_sizes)
    )
    if not sizes:
        raise ConfigurationError(
            f"the fullest card has {format_nbytes(room * _SHARE_OF_FREE_MEMORY)} free; copies of "
            f"{format_nbytes(effort.sizes[0])} need {_SHARE_OF_FREE_MEMORY} times their size"
        )
    largest = sizes[-1:]
    return replace(effort, sizes=sizes, probe_sizes=probes or largest, host_probe_sizes=host_probes or largest)
