"""Links between virtual cards that take their time, lie, or die.

    set_link(0, 1, bytes_per_s=1e9, latency_s=20e-6)      # card 0 -> card 1; 1 -> 0 is another link
    set_link(None, 0, bytes_per_s=2e9)                    # host -> card 0
    set_fault(0, 1, "dies", after_copies=3)
    carried(0, 1)                                         # (copies, bytes)

A link without a model copies at once. With one, a copy takes `latency_s + nbytes / bytes_per_s` by the clock and moves
its bytes in pieces over that time, one copy after another in each direction. Virtual cards must be there already;
making others (`poolrt.virtual`) takes all models and faults away and counts anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations, product
from typing import Literal

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import link_preset
from poolrt.topology.route import route
from poolrt.topology.topology import Topology

FaultKind = Literal["lies", "dies"]

_paced = False  # whether `pace` was called for the cards that there are

_KINDS = {"lies": _C.LINK_LIES, "dies": _C.LINK_DIES}


def set_link(source: int | None, target: int | None, *, bytes_per_s: float, latency_s: float = 0.0) -> None:
    """Let copies from `source` to `target` take their time; the other direction is set on its own.

    Args:
        source: the card that is read; None is the host.
        target: the card that is written; None is the host.
        bytes_per_s: what one copy reaches.
        latency_s: what every copy costs besides.

    Raises:
        ConfigurationError: for a place that is not there, twice the same, or a speed or latency that cannot be.
    """
    if not (0 < bytes_per_s < math.inf and 0 <= latency_s < math.inf):
        raise ConfigurationError(
            f"the link {name_of(source, target)} needs a positive bandwidth and no negative latency, got {bytes_per_s} "
            f"bytes/s and {latency_s} s; clear_links() makes copies immediate again"
        )
    _C.link_set_model(*_ends(source, target), bytes_per_s, latency_s)


def pace(topology: Topology) -> None:
    """Give every link between the cards, and of each card with the host, the speed that `topology` states.

    Two cards without a stated link get that of the route through the host, and so does each card with the host.
    """
    global _paced
    _paced = True
    cards = range(len(topology))
    for source, target in permutations(cards, 2):
        way = route(topology, source, target)
        set_link(source, target, bytes_per_s=way.bytes_per_s, latency_s=way.latency_s)
    host = link_preset("host")
    for card in cards:
        set_link(None, card, bytes_per_s=host.bytes_per_s, latency_s=host.latency_s)
        set_link(card, None, bytes_per_s=host.bytes_per_s, latency_s=host.latency_s)


def are_paced() -> bool:
    """Whether these cards stand for a box with links of its own: `pace` was called since they were made."""
    return _paced


def begin_anew() -> None:
    """There are other cards: no link of theirs is paced; for `poolrt.virtual_cards.backend` alone."""
    global _paced
    _paced = False


def clear_links() -> None:
    """Take every link's model away: copies are done at once."""
    for source, target in _all_ends():
        _C.link_set_model(source, target, 0.0, 0.0)


def set_fault(
    source: int | None,
    target: int | None,
    kind: FaultKind,
    *,
    at_byte: int | None = None,
    at_least_nbytes: int = 0,
    after_copies: int | None = None,
    after_nbytes: int | None = None,
) -> None:
    """Break the link from `source` to `target` (None is the host).

    "lies": copies are reported done, but one byte is wrong. "dies": every copy fails from some point on, which raises
    torch.AcceleratorError with error_code 220; a queued copy raises where its stream, or an event after it, is waited
    for.

    Args:
        source: the card that is read; None is the host.
        target: the card that is written; None is the host.
        kind: "lies" or "dies".
        at_byte: of a lie, which byte of the copy is wrong; None is the one in the middle. Shorter copies are right.
        at_least_nbytes: of a lie, smaller copies are right.
        after_copies: of a death, how many copies still arrive.
        after_nbytes: of a death, how many bytes still arrive; the copy that would pass it is the first to fail. With
            neither of the two the link is dead at once.

    Raises:
        ConfigurationError: for a place that is not there, or arguments that belong to the other kind.
    """
    if kind not in _KINDS:
        raise ConfigurationError(f"a link can have the faults {list(_KINDS)}, not {kind!r}")
    of_lies = at_byte is not None or at_least_nbytes != 0
    of_dies = after_copies is not None or after_nbytes is not None
    if of_lies if kind == "dies" else of_dies:
        raise ConfigurationError(
            f'a link that {kind} takes no such argument: at_byte and at_least_nbytes are for "lies", after_copies and '
            'after_nbytes for "dies"'
        )
    numbers = [at_byte, at_least_nbytes, after_copies, after_nbytes]
    if any(number is not None and number < 0 for number in numbers):
        raise ConfigurationError(f"a fault counts from 0, got {numbers}")
    if kind == "dies" and not of_dies:
        after_copies = 0
    _C.link_set_fault(*_ends(source, target), _KINDS[kind], at_byte, at_least_nbytes, after_copies, after_nbytes)


def clear_faults() -> None:
    """Mend every link, also those that died."""
    for source, target in _all_ends():
        _C.link_set_fault(source, target, _C.LINK_SOUND)


def is_up(source: int | None, target: int | None) -> bool:
    """False once the link from `source` to `target` (None is the host) has died.

    Raises:
        ConfigurationError: for a place that is not there.
    """
    return _C.link_state(*_ends(source, target)).up


def carried(source: int | None, target: int | None) -> tuple[int, int]:
    """(copies, bytes) that went from `source` to `target` (None is the host) since the cards were made.

    Every copy between the two counts, whether the link has a model or not; a queued one when its turn comes, a failed
    one never.

    Raises:
        ConfigurationError: for a place that is not there.
    """
    state = _C.link_state(*_ends(source, target))
    return state.copies, state.nbytes


def name_of(source: int | None, target: int | None) -> str:
    """The link in words: "card 0 -> host"."""
    return " -> ".join("host" if place is None else f"card {place}" for place in (source, target))


def _ends(source: int | None, target: int | None) -> tuple[int, int]:
    """As the driver numbers them, checked."""
    cards = _C.host_driver().device_count()
    known = all(place is None or 0 <= place < cards for place in (source, target))
    if not known or source == target:
        raise ConfigurationError(
            f"there is no link {name_of(source, target)}: it joins two of the {cards} virtual cards, or one and the "
            "host (None)"
        )
    return (_place(source), _place(target))


def _place(card: int | None) -> int:
    return _C.HOST_MEMORY if card is None else card


def _all_ends() -> Iterator[tuple[int, int]]:
    places = [_C.HOST_MEMORY, *range(_C.host_driver().device_count())]
    return ((source, target) for source, target in product(places, places) if source != target)
