"""Where the pieces of one tensor lie: its shape, how one dimension is dealt out, and the cards.

    whole      rows 0..3 | 4..7 | 8..11        split along 0: card 0 holds 0..2 and 4..6, card 1 the others
    piece 0    0 1 | 4 5 | 8 9
    piece 1    2 3 | 6 7 | 10 11

Scattering and gathering are copies of runs, so no card ever holds more than its piece and the copy of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split
from poolrt.units import MIB

CHUNK_NBYTES = 16 * MIB
"""of a run that is not contiguous, copied at once: such a copy may need as much again on a card"""


Allocating = Callable[[int], AbstractContextManager[None]]
"""for the ordinal of a card, what holds while its piece is allocated: a pool's use, say"""


def plainly(card: int) -> AbstractContextManager[None]:
    """A piece comes from its card's own memory."""
    return nullcontext()


@dataclass(frozen=True)
class Run:
    """Neighbouring indices of the split dimension, in the whole and in one card's piece."""

    start: int
    piece_start: int
    length: int


@dataclass(frozen=True)
class SharedRun:
    """Neighbouring indices that several cards hold."""

    length: int
    holders: tuple[tuple[int, int], ...]
    """(card, where its piece has the first of them), the owner first"""


@dataclass(frozen=True)
class Sharding:
    """The shape of a whole tensor, the split of one of its dimensions, and the device of every card."""

    shape: tuple[int, ...]
    split: Split
    devices: tuple[torch.device, ...]

    def __post_init__(self) -> None:
        if len(self.devices) != self.split.cards:
            raise ConfigurationError(
                f"a split over {self.split.cards} cards cannot lie on {len(self.devices)} devices: {self.devices}"
            )
        if self.split.dim >= len(self.shape) or self.shape[self.split.dim] != self.split.size:
            raise ConfigurationError(
                f"a split of dimension {self.split.dim} with {self.split.size} indices does not fit a tensor of shape "
                f"{self.shape}"
            )

    @property
    def lead(self) -> torch.device:
        """Where results of computations with the whole lie."""
        return self.devices[0]

    @property
    def cards(self) -> range:
        """The ordinals of the pieces."""
        return range(len(self.devices))

    @cached_property
    def runs(self) -> tuple[tuple[Run, ...], ...]:
        """For each card what its piece holds, in order."""
        return tuple(tuple(_runs(ranges)) for ranges in self.split.pieces)

    @cached_property
    def owned(self) -> tuple[tuple[Run, ...], ...]:
        """As `runs`, without what a card before holds as well."""
        if self.split.is_disjoint:
            return self.runs
        kept = [set(self.split.owned(card)) for card in self.cards]
        return tuple(
            tuple(part for run in self.runs[card] for part in _overlaps(run, kept[card])) for card in self.cards
        )

    @cached_property
    def shared(self) -> tuple[SharedRun, ...]:
        """What several cards hold, in runs that have the same holders from end to end."""
        ends = sorted({end for runs in self.runs for run in runs for end in (run.start, run.start + run.length)})
        found = (SharedRun(stop - start, tuple(self._holders(start))) for start, stop in pairwise(ends))
        return tuple(run for run in found if len(run.holders) > 1)

    def _holders(self, index: int) -> Iterator[tuple[int, int]]:
        for card in self.cards:
            for run in self.runs[card]:
                if run.start <= index < run.start + run.length:
                    yield card, run.piece_start + index - run.start

    def piece_shape(self, card: int) -> tuple[int, ...]:
        """The shape of that card's piece."""
        shape = list(self.shape)
        shape[self.split.dim] = self.split.piece_sizes[card]
        return tuple(shape)

    def cut(self, whole: Tensor, card: int) -> Tensor:
        """What `card` holds of `whole`, on whole's device: a view where it is one run."""
        dim = self.split.dim
        parts = [whole.narrow(dim, run.start, run.length) for run in self.runs[card]]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim) if parts else whole.narrow(dim, 0, 0)

    def scatter(
        self, whole: Tensor, dtype: torch.dtype | None = None, allocating: Allocating = plainly
    ) -> list[Tensor]:
        """New pieces with the values of `whole`, in its order of strides.

        Args:
            whole: on any device.
            dtype: of the pieces, that of `whole` unless given.
            allocating: for the ordinal of a card, what its piece is allocated in.

        Raises:
            torch.OutOfMemoryError: if a card has no room for its piece.
        """
        pieces = []
        for card in self.cards:
            shape = self.piece_shape(card)
            strides = dense_strides(shape, whole.stride())
            with allocating(card):
                pieces.append(
                    torch.empty_strided(shape, strides, dtype=dtype or whole.dtype, device=self.devices[card])
                )
            self.fill_piece(pieces[card], whole, card)
        return pieces

    def fill_piece(self, piece: Tensor, whole: Tensor, card: int) -> None:
        """Copy what `card` holds of `whole` into its piece."""
        dim = self.split.dim
        for run in self.runs[card]:
            copy_in_chunks(
                piece.narrow(dim, run.piece_start, run.length), whole.narrow(dim, run.start, run.length), CHUNK_NBYTES
            )

    def gather(self, pieces: Sequence[Tensor], whole: Tensor) -> Tensor:
        """Copy the pieces into `whole`, which may be on any device; replicas come from their owner."""
        dim = self.split.dim
        for card in self.cards:
            for run in self.owned[card]:
                source = pieces[card].narrow(dim, run.piece_start, run.length)
                copy_in_chunks(whole.narrow(dim, run.start, run.length), source, CHUNK_NBYTES)
        return whole

    def owned_part(self, piece: Tensor, card: int) -> Tensor:
        """What of `card`'s piece no card before it holds: what a sum over the whole counts here."""
        if self.split.is_disjoint:
            return piece
        parts = [piece.narrow(self.split.dim, run.piece_start, run.length) for run in self.owned[card]]
        return torch.cat(parts, self.split.dim) if parts else piece.narrow(self.split.dim, 0, 0)


def dense_strides(shape: Sequence[int], like: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor without gaps whose dimensions lie in memory in the order of the strides `like`."""
    strides = [0] * len(shape)
    step = 1
    for dim in sorted(range(len(shape)), key=lambda dim: (like[dim], -dim)):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def copy_in_chunks(target: Tensor, source: Tensor, chunk_nbytes: int) -> None:
    """Copy from device to device; what is not contiguous in parts, since a copy of each part is made on the way."""
    same_form = target.is_contiguous() and source.is_contiguous() and target.dtype == source.dtype
    if same_form or target.dim() == 0 or source.nbytes <= chunk_nbytes:
        target.copy_(source)
        return
    dim = max(range(target.dim()), key=lambda dim: target.shape[dim])
    at_once = max(1, target.shape[dim] * chunk_nbytes // source.nbytes)
    for part, values in zip(target.split(at_once, dim), source.split(at_once, dim), strict=True):
        part.copy_(values)


def _runs(ranges: Sequence[tuple[int, int]]) -> Iterator[Run]:
    lengths = [stop - start for start, stop in ranges]
    places = accumulate(lengths, initial=0)
    for (start, _), place, length in zip(ranges, places, lengths, strict=False):
        yield Run(start, place, length)


def _overlaps(run: Run, ranges: set[tuple[int, int]]) -> Iterator[Run]:
    """The parts of `run` that lie in `ranges`."""
    for start, stop in sorted(ranges):
        first, last = max(start, run.start), min(stop, run.start + run.length)
        if first < last:
            yield Run(first, run.piece_start + first - run.start, last - first)
