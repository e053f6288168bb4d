"""Which way bytes go from one device to another now.

    LOCAL   within one device
    P2P     from card to card, over the link between them or through the host's memory without our help
    HOST    through bounce buffers in the host's memory; or one end is the host itself

A topology says what may be, measured facts say what pays from which size on, and a link that failed is avoided from
then on. The process has one `current()` set of routes, because a machine has one set of links: a link that died under
one model is dead for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind, route
from poolrt.topology.topology import Topology

Pair = tuple[torch.device, torch.device]
"""(source, target)"""

HOST = torch.device("cpu")
_log = logging.getLogger("poolrt")


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """The way for one ordered pair, by size.

    Raises:
        ConfigurationError: if the sizes do not ascend from 0.
    """

    kind_by_size: tuple[tuple[int, RouteKind], ...]
    """(from this many bytes on, route), ascending from 0"""

    def __post_init__(self) -> None:
        sizes = [nbytes for nbytes, _ in self.kind_by_size]
        if sizes[:1] != [0] or sizes != sorted(set(sizes)):
            raise ConfigurationError(f"the sizes of a pair's routes must ascend from 0 bytes, got {sizes}")

    def at(self, nbytes: int) -> RouteKind:
        """The way for `nbytes`."""
        if len(self.kind_by_size) == 1:  # asked before every copy
            return self.kind_by_size[0][1]
        return next(kind for least, kind in reversed(self.kind_by_size) if nbytes >= least)


class Routes:
    """The ways between the devices of this machine. Safe to use from several threads.

    Args:
        topology: what joins the cards. Of pairs that no topology names, virtual cards are asked of their driver, and
            GPUs copy through the host.
        facts: by (source card, target card) of the topology, what measuring found better.
    """

    def __init__(
        self, topology: Topology | None = None, facts: Mapping[tuple[int, int], PairChoice] | None = None
    ) -> None:
        self._choices: dict[Pair, PairChoice] = {}
        self._lost: dict[Pair, str] = {}
        self._lock = threading.Lock()
        if topology is not None:
            self.learn(topology, facts)

    def learn(self, topology: Topology, facts: Mapping[tuple[int, int], PairChoice] | None = None) -> None:
        """Know the pairs of another topology as well. What is lost stays lost."""
        devices = [torch.device(card.device) for card in topology.cards]
        for source, target in permutations(range(len(topology)), 2):
            stated = PairChoice(kind_by_size=((0, route(topology, source, target).kind),))
            choice = stated if facts is None else facts.get((source, target), stated)
            with self._lock:
                self._choices[devices[source], devices[target]] = choice

    def between(self, source: torch.device, target: torch.device, nbytes: int) -> RouteKind:
        """The way for `nbytes` from `source` to `target`."""
        pair = (source, target)
        choice = self._choices.get(pair)
        if choice is None:
            choice = self._ask(pair)
        return "HOST" if self._lost and pair in self._lost else choice.at(nbytes)

    def lose(self, source: torch.device, target: torch.device, why: object) -> None:
        """From now on this pair goes through the host. The log says so once."""
        with self._lock:
            known = (source, target) in self._lost
            self._lost.setdefault((source, target), str(why))
        if not known:
            first_line = str(why).partition("\n")[0]
            _log.warning("copies from %s to %s go through the host from now on: %s", source, target, first_line)

    def is_lost(self, source: torch.device, target: torch.device) -> bool:
        """Whether `lose` was called for this pair."""
        return (source, target) in self._lost

    def forget(self, device_type: str) -> None:
        """These devices are new ones: nothing is known of them, and nothing lost."""
        with self._lock:
            for known in (self._choices, self._lost):
                for pair in [pair for pair in known if device_type in (pair[0].type, pair[1].type)]:
                    del known[pair]

    def _ask(self, pair: Pair) -> PairChoice:
        kind: RouteKind = "LOCAL" if pair[0] == pair[1] else "P2P" if _may_reach(*pair) else "HOST"
        choice = PairChoice(kind_by_size=((0, kind),))
        with self._lock:
            return self._choices.setdefault(pair, choice)


def _may_reach(source: torch.device, target: torch.device) -> bool:
    """Whether bytes may go straight from one to the other, as far as is known without a topology.

    Not between GPUs: that their driver claims it proves nothing. Who has proven a link tells it with `learn`. Devices
    that are neither cards nor the host are torch's own affair: it copies itself.
    """
    if source.type == target.type == "vcard":
        return _C.host_driver().can_access_peer(source.index or 0, target.index or 0)
    return not {source.type, target.type} <= {"cpu", "cuda", "vcard"}


_current = Routes()


def current() -> Routes:
    """The routes of this process."""
    return _current
