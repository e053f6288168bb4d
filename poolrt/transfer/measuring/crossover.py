"""Which route is fastest at which size: the lower edge of the routes' lines. Pure.

seconds |  HOST  . '        . - '   P2P starts lower here and grows faster: up to the crossing it wins, beyond it
        |      . '  . - '           HOST does. A line that is nowhere lowest is never chosen, so a pair whose peer
        | .  +  '                   route is slower than the way through the host at every size does not use it.
        |- '  ^ crossing
        +-----------------> nbytes
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind
from poolrt.transfer.measuring.figures import Line

KindBySize = tuple[tuple[int, RouteKind], ...]
"""(from so many bytes on, this route), smallest first; the first starts at 0"""

LARGEST_NBYTES = 1 << 50
"""crossings beyond this are noise: no copy is that large"""


def crossing_nbytes(first: Line, second: Line) -> float | None:
    """The size at which `second`, slower up to there, becomes the faster one; None if it never does."""
    gain_per_byte = 1 / first.bytes_per_s - 1 / second.bytes_per_s
    if gain_per_byte <= 0:
        return None
    return max(0.0, (second.latency_s - first.latency_s) / gain_per_byte)


def fastest_by_size(lines: Mapping[RouteKind, Line]) -> KindBySize:
    """The route to take from each size on. Of equally fast ones the one named first.

    Raises:
        ConfigurationError: if there is no route.
    """
    if not lines:
        raise ConfigurationError("no route was measured, so none can be chosen")
    kind = min(lines, key=lambda name: (lines[name].latency_s, -lines[name].bytes_per_s))
    chosen: list[tuple[int, RouteKind]] = [(0, kind)]
    while True:
        crossings = {
            name: crossing
            for name, line in lines.items()
            if (crossing := crossing_nbytes(lines[kind], line)) is not None and crossing < LARGEST_NBYTES
        }
        if not crossings:
            return tuple(chosen)
        # Where several cross at one point the flattest goes on below the others.
        kind = min(crossings, key=lambda name: (crossings[name], -lines[name].bytes_per_s))
        from_nbytes = math.ceil(crossings[kind])
        if from_nbytes == chosen[-1][0]:
            chosen.pop()  # it was fastest for no whole byte
        chosen.append((from_nbytes, kind))
