"""Known content for copies: every 8 bytes differ from all others, and every pair, size and direction has its own.

    word i of key k  =  mix(i) xor mix(k)

mix is the output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
2014): a bijection, so no two words of one pattern are equal. A word that arrives at a wrong place, or from an earlier
copy of another pair, shows; so does a single bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD_NBYTES = 8

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Patterns:
    """Makes patterns of up to `nbytes` bytes; the part that all keys share is computed once."""

    def __init__(self, nbytes: int) -> None:
        self._mixed = _mix(torch.arange(nbytes // WORD_NBYTES, dtype=torch.int64))

    def words(self, key: int, nbytes: int) -> Tensor:
        """The first `nbytes // 8` words of the pattern of `key`, an int64 tensor on the CPU."""
        return self._mixed[: nbytes // WORD_NBYTES] ^ _mix(torch.tensor(key, dtype=torch.int64))


def key_of(source: int, target: int, nbytes: int) -> int:
    """A key of its own for every ordered pair of cards and size."""
    return (source << 52) | (target << 44) | nbytes


def wrong_bytes(arrived: Tensor, expected: Tensor) -> tuple[int, int | None]:
    """How many bytes differ between two CPU tensors of words, and the offset of the first; (0, None) if none."""
    if torch.equal(arrived, expected):
        return 0, None
    differs = arrived.view(torch.uint8) != expected.view(torch.uint8)
    return int(differs.sum()), int(differs.view(torch.uint8).argmax())  # of equal maxima torch answers the first


def _mix(words: Tensor) -> Tensor:
    """splitmix64's numbers at these positions. int64 wraps around as uint64 does."""
    words = (words + 1) * _signed(_GAMMA)
    words = (words ^ _shifted(words, 30)) * _signed(_FIRST)
    words = (words ^ _shifted(words, 27)) * _signed(_SECOND)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, filled up with zeros: torch fills up with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
