"""How much is copied to prove and time the ways between cards. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from poolrt.errors import ConfigurationError
from poolrt.transfer.measuring.figures import Direction
from poolrt.transfer.measuring.pattern import WORD_NBYTES
from poolrt.transfer.measuring.probe import PROBE_NBYTES
from poolrt.units import KIB, MIB, format_nbytes

SHARE_OF_FREE_MEMORY = 8
"""a buffer takes at most one part in so many of what is free on a card; a card has two"""


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
    seconds: float = 20.0
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


def limited(effort: Effort, room: int) -> Effort:
    """What fits into buffers of `room` bytes. A probe that does not fit is cut to what does, and never left out.

    Raises:
        ConfigurationError: if the smallest copy does not fit.
    """
    sizes = tuple(nbytes for nbytes in effort.sizes if nbytes <= room)
    if not sizes:
        raise ConfigurationError(
            f"the fullest card has {format_nbytes(room * SHARE_OF_FREE_MEMORY)} free; copies of "
            f"{format_nbytes(effort.sizes[0])} need {SHARE_OF_FREE_MEMORY} times their size"
        )
    whole = room // WORD_NBYTES * WORD_NBYTES
    probes, host_probes = (
        tuple(sorted({min(nbytes, whole) for nbytes in cut})) for cut in (effort.probe_sizes, effort.host_probe_sizes)
    )
    return replace(effort, sizes=sizes, probe_sizes=probes, host_probe_sizes=host_probes)
