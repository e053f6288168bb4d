"""Proves and times the ways between cards: every ordered pair, every route, one way and both ways at once.

prove    each peer route: does what is sent arrive?          a route that lies or fails is not timed
time     size by size, as far as the budget of seconds goes
judge    from proofs and lines to the routes to take
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from poolrt.topology.route import RouteKind, route
from poolrt.topology.topology import Topology
from poolrt.transfer import bounce
from poolrt.transfer.copy import copy_over
from poolrt.transfer.measuring.effort import FULL, SHARE_OF_FREE_MEMORY, Effort, limited
from poolrt.transfer.measuring.figures import Direction, Sample, summarize
from poolrt.transfer.measuring.leg import Copier, HungError, Leg, make_leg
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.pattern import WORD_NBYTES, Patterns
from poolrt.transfer.measuring.probe import SentNbytes, prove, prove_host
from poolrt.transfer.measuring.stopwatch import time_copies
from poolrt.transfer.measuring.verdict import Proof, judge

Pair = tuple[int, int]

_FEWEST_POINTS = 2
"""sizes that are timed however little time there is: a line needs two points"""


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


@dataclass(kw_only=True)
class _Curve:
    """One route of one pair in one or both directions, of which copies of growing size are timed."""

    route: RouteKind
    pair: Pair
    direction: Direction
    last_s: float = 0.0

    @property
    def ways(self) -> tuple[Pair, ...]:
        """The ordered pairs that are busy at once."""
        return (self.pair,) if self.direction == "one way" else (self.pair, self.pair[::-1])

    def sample(self, nbytes: int) -> Sample:
        """The last copy."""
        source, target = self.pair
        return Sample(
            route=self.route,
            source=source,
            target=target,
            direction=self.direction,
            nbytes=nbytes,
            seconds=self.last_s,
        )


class _Bench:
    """Two buffers on every card, and what was found so far."""

    def __init__(self, topology: Topology, copier: Copier, effort: Effort, sent_nbytes: SentNbytes) -> None:
        self._topology, self._copier, self._sent_nbytes = topology, copier, sent_nbytes
        self._effort = limited(effort, _room(topology))
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

    def _curves(self, pairs: list[Pair]) -> Iterator[_Curve]:
        """What is timed: in one direction every pair, in both at once those whose way back is wanted too."""
        for direction in self._effort.directions:
            for source, target in pairs:
                if direction == "one way" or (source < target and (target, source) in pairs):
                    for kind in routes_of(self._topology, source, target):
                        yield _Curve(route=kind, pair=(source, target), direction=direction)

    def _time(self, curves: list[_Curve]) -> None:
        """Size by size over all curves, so that all have the same sizes, and no moment of noise falls on one alone."""
        end = time.monotonic() + self._effort.seconds
        running = [curve for curve in curves if self._may_run(curve)]
        sizes = self._effort.sizes
        for position, nbytes in enumerate(sizes):
            growth = nbytes / sizes[position - 1] if position else 0.0
            round_s = growth * sum(curve.last_s for curve in running)
            rounds = (end - time.monotonic()) / round_s if round_s else float("inf")
            if position >= _FEWEST_POINTS and rounds < 2:
                break
            repeats = min(self._effort.repeats, max(1, int(min(rounds, 1e6)) - 1))
            running = [curve for curve in running if self._may_run(curve) and self._has_run(curve, nbytes, repeats)]

    def _may_run(self, curve: _Curve) -> bool:
        return not self._hung & set(curve.pair) and (curve.route != "P2P" or all(map(self._proven, curve.ways)))

    def _has_run(self, curve: _Curve, nbytes: int, repeats: int) -> bool:
        """Time copies of one size; whether the route may go on."""
        legs = [self._leg(curve.route, way) for way in curve.ways]
        try:
            time_copies(legs, nbytes)  # the first makes buffers and wakes links: not counted
            for _ in range(repeats):
                curve.last_s = time_copies(legs, nbytes)
                self._samples.append(curve.sample(nbytes))
        except RuntimeError as error:
            self._hung |= set(curve.pair) if isinstance(error, HungError) else set()
            self._fail(curve.route, curve.pair, nbytes, str(error).partition("\n")[0])
            return False
        finally:
            bounce.release()  # torch keeps pinned memory once it has some: every pair uses that of the pair before
        return True

    def _proven(self, pair: Pair) -> bool:
        proofs = [proof for proof in self._proofs if (proof.route, proof.source, proof.target) == ("P2P", *pair)]
        return bool(proofs) and all(proof.good for proof in proofs)

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
    return min(free) // SHARE_OF_FREE_MEMORY
