"""Which kernel, how many threads, how wide a load: decided as plain values, without torch and without a card.

    one type, neighbours all along    copy_bytes     16 bytes per thread and turn, any alignment
    one type, strided                 copy_strided   the widest word that fits all strides and addresses
    two types                         copy_strided   packs of elements, up to 16 bytes on the wider side
    a sum                             add_strided    the same
    many runs of bytes                copy_many      one block per 16 KiB

A contiguous copy whose elements do not fill the last pack takes a second, small launch for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.dtypes import ITEM_NBYTES, WORDS, category, common_type
from poolrt.transfer.kernels.walk import WIDEST_NBYTES, Walk, walk_of
from poolrt.transfer.layout import Layout

Kernel = Literal["copy_bytes", "copy_strided", "add_strided", "copy_many"]

CHUNK_NBYTES = 16 * 1024
"""what a block of copy_many takes at a time; kChunkBytes in csrc/kernels.cu"""
_INT32_END = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """How many threads a launch may have."""

    threads: int = 256
    """of a block"""
    most_blocks: int = 2048
    """beyond which threads take several turns: 16 per multiprocessor fill every card there is"""

    def blocks(self, turns: int) -> int:
        """Blocks for `turns` threads' worth of work."""
        return max(1, min(self.most_blocks, -(-turns // self.threads)))


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of one kernel."""

    kernel: Kernel
    types: tuple[str, ...]
    """that the kernel is compiled for: (source, target), or (source, common, target) of a sum"""
    items: int
    """elements of a pack"""
    wide: bool
    """whether positions need 64 bits"""
    blocks: int
    threads: int
    target_address: int
    """of the lowest byte that is written"""
    source_address: int
    count: int
    """packs, or bytes of copy_bytes"""
    walk: Walk | None
    """None for copy_bytes"""


def plan_copy(target: Layout, target_type: str, source: Layout, source_type: str, lanes: Lanes) -> tuple[Launch, ...]:
    """The launches that make `target` equal to `source`, at most two; none for no elements.

    Raises:
        ConfigurationError: if the shapes differ, the types cannot be converted, an address is no multiple of its
            element's size where types differ, or there are too many dimensions.
    """
    _check_shapes(target, source)
    if target.elements == 0:
        return ()
    walk = walk_of(target, source)
    if target_type != source_type:
        category(target_type), category(source_type)  # which refuse types that no kernel knows
        return _in_packs("copy_strided", (source_type, target_type), walk, target, source, lanes)
    if walk.extents == (target.elements,) and walk.target_strides == walk.source_strides == (1,):
        return (_of_bytes(target, source, lanes),)
    return (_of_words(walk, target, source, lanes),)


def plan_add(target: Layout, target_type: str, source: Layout, source_type: str, lanes: Lanes) -> tuple[Launch, ...]:
    """The launches that add `source` to `target`, at most two; none for no elements.

    Raises:
        ConfigurationError: as plan_copy, and if torch would not add these types in place.
    """
    _check_shapes(target, source)
    types = (source_type, common_type(target_type, source_type), target_type)
    if target.elements == 0:
        return ()
    return _in_packs("add_strided", types, walk_of(target, source), target, source, lanes)


def _check_shapes(target: Layout, source: Layout) -> None:
    if target.shape != source.shape:
        raise ConfigurationError(
            f"the source's shape {source.shape} is not the target's {target.shape}; expand the source first"
        )


def _of_bytes(target: Layout, source: Layout, lanes: Lanes) -> Launch:
    nbytes = target.elements * target.item_nbytes
    return Launch(
        kernel="copy_bytes",
        types=(),
        items=1,
        wide=True,
        blocks=lanes.blocks(-(-nbytes // WIDEST_NBYTES)),
        threads=lanes.threads,
        target_address=target.first_address,
        source_address=source.first_address,
        count=nbytes,
        walk=None,
    )


def _of_words(walk: Walk, target: Layout, source: Layout, lanes: Lanes) -> Launch:
    """The bytes as the widest words that divide both addresses and all strides."""
    nbytes, addresses = target.item_nbytes, target.first_address | source.first_address
    narrow = nbytes & -nbytes  # the largest power of two in it
    while addresses % narrow or narrow > WIDEST_NBYTES:
        narrow //= 2
    if narrow < nbytes:
        walk = walk.in_narrower_items(nbytes // narrow)
    word = narrow
    while word < WIDEST_NBYTES and addresses % (2 * word) == 0 and walk.takes_together(2):
        walk, word = walk.in_wider_items(2), 2 * word
    types = (WORDS[word], WORDS[word])
    return _strided("copy_strided", types, 1, walk, target.first_address, source.first_address, lanes)


def _in_packs(
    kernel: Kernel, types: tuple[str, ...], walk: Walk, target: Layout, source: Layout, lanes: Lanes
) -> tuple[Launch, ...]:
    """Packs as large as both sides allow; of a row that they do not fill, the rest by itself."""
    addresses = (target.first_address, source.first_address)
    for layout, address in zip((target, source), addresses, strict=True):
        if address % layout.item_nbytes:
            raise ConfigurationError(
                f"an address ends in {address % 64:#x}, which is no multiple of its element's {layout.item_nbytes} "
                "bytes; copy the tensor within its own type first, which takes any address"
            )
    items = WIDEST_NBYTES // max(target.item_nbytes, source.item_nbytes)
    while items > 1 and not _fits(items, walk, target, source):
        items //= 2
    if len(walk.extents) > 1 or walk.extents[0] % items == 0:
        return (_strided(kernel, types, items, walk, *addresses, lanes),)
    whole = walk.extents[0] - walk.extents[0] % items
    rest = Walk(extents=(walk.extents[0] - whole,), target_strides=(1,), source_strides=(1,))
    whole_walk = Walk(extents=(whole,), target_strides=(1,), source_strides=(1,))
    beyond = (addresses[0] + whole * target.item_nbytes, addresses[1] + whole * source.item_nbytes)
    return (
        _strided(kernel, types, items, whole_walk, *addresses, lanes),
        _strided(kernel, types, 1, rest, *beyond, lanes),
    )


def _fits(items: int, walk: Walk, target: Layout, source: Layout) -> bool:
    """Whether packs of `items` can be loaded and stored; a single row may leave a rest that is no whole pack."""
    aligned = all(layout.first_address % (items * layout.item_nbytes) == 0 for layout in (target, source))
    one_row = walk.extents[0] >= items and walk.target_strides == walk.source_strides == (1,)
    return aligned and (one_row or walk.takes_together(items))


def _strided(
    kernel: Kernel,
    types: tuple[str, ...],
    items: int,
    walk: Walk,
    target_address: int,
    source_address: int,
    lanes: Lanes,
) -> Launch:
    walk = walk.in_packs(items) if items > 1 else walk
    blocks = lanes.blocks(walk.packs)
    farthest = max(walk.packs + blocks * lanes.threads, walk.highest_position + items)
    return Launch(
        kernel=kernel,
        types=types,
        items=items,
        wide=farthest >= _INT32_END,
        blocks=blocks,
        threads=lanes.threads,
        target_address=target_address,
        source_address=source_address,
        count=walk.packs,
        walk=walk,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ManyLaunch:
    """One launch of copy_many."""

    table: numpy.ndarray[Any, Any]
    """int64, four rows of one entry per run: the target's offset, the source's, bytes, and the first chunk's number"""
    runs: int
    chunks: int
    blocks: int
    threads: int
    target_address: int
    """that offsets count from: the lowest"""
    source_address: int


def plan_many(runs: numpy.ndarray[Any, Any], lanes: Lanes) -> ManyLaunch | None:
    """The launch that copies all runs, rows of (target address, source address, bytes); None if they have no bytes."""
    targets, sources, sizes = runs[runs[:, 2] > 0].T
    if len(sizes) == 0:
        return None
    ends = numpy.cumsum(-(-sizes // CHUNK_NBYTES))
    first_chunks = numpy.concatenate([[0], ends[:-1]])
    first_target, first_source, chunks = int(targets.min()), int(sources.min()), int(ends[-1])
    return ManyLaunch(
        table=numpy.stack([targets - first_target, sources - first_source, sizes, first_chunks]),
        runs=len(sizes),
        chunks=chunks,
        blocks=min(chunks, lanes.most_blocks),
        threads=lanes.threads,
        target_address=first_target,
        source_address=first_source,
    )


def element_nbytes(name: str) -> int:
    """The size of one element that kernels name so: a type of numbers or a word."""
    return {**ITEM_NBYTES, **{word: nbytes for nbytes, word in WORDS.items()}}[name]
