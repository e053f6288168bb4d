"""Which cards a user asks for, in one word: the value of the environment variable POOLRT_CARDS.

virtual:2x4GiB            two virtual cards of 4 GiB
virtual:4GiB,8GiB         two virtual cards, unequal
cuda:0,1                  GPUs 0 and 1
logical:cuda:0:2x8GiB     two logical cards of 8 GiB on GPU 0
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from poolrt.errors import ConfigurationError
from poolrt.topology.build import MAXIMUM_CARDS
from poolrt.units import parse_nbytes

FORMS = "virtual:2x4GiB, virtual:4GiB,8GiB, cuda:0,1 or logical:cuda:0:2x8GiB"

_COUNT_OF_SIZE = re.compile(r"(?P<count>\d+)\s*x\s*(?P<size>.+)")
_LOGICAL = re.compile(r"(?P<device>cuda:\d+):(?P<sizes>.+)")


@dataclass(frozen=True, kw_only=True)
class VirtualRequest:
    """Virtual cards."""

    memory_bytes: tuple[int, ...]
    """size of each card"""


@dataclass(frozen=True, kw_only=True)
class CudaRequest:
    """Some of the machine's GPUs."""

    indices: tuple[int, ...]
    """CUDA ordinals, in the order in which they become cards"""


@dataclass(frozen=True, kw_only=True)
class LogicalRequest:
    """Shares of one GPU."""

    device: str
    """torch's name of the GPU"""
    memory_bytes: tuple[int, ...]
    """size of each share"""


CardsRequest = VirtualRequest | CudaRequest | LogicalRequest


def parse_cards(text: str) -> CardsRequest:
    """The cards that `text` asks for.

    Raises:
        ConfigurationError: if the text is none of the four forms, a size cannot be read, or the number of virtual or
            logical cards is not 1..16.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "virtual" and rest:
        return VirtualRequest(memory_bytes=_sizes(rest, text))
    if kind == "cuda" and rest:
        return CudaRequest(indices=_indices(rest, text))
    if kind == "logical" and (match := _LOGICAL.fullmatch(rest)):
        return LogicalRequest(device=match["device"], memory_bytes=_sizes(match["sizes"], text))
    raise ConfigurationError(f"cannot read {text!r} as cards; write {FORMS}")


def _sizes(sizes: str, text: str) -> tuple[int, ...]:
    if match := _COUNT_OF_SIZE.fullmatch(sizes.strip()):
        count, words = int(match["count"]), [match["size"]]
    else:
        words = sizes.split(",")
        count = len(words)
    if not 1 <= count <= MAXIMUM_CARDS:
        raise ConfigurationError(f"{text!r} asks for {count} cards; choose 1 to {MAXIMUM_CARDS}")
    try:
        nbytes = tuple(parse_nbytes(word) for word in words)
    except ConfigurationError as error:
        raise ConfigurationError(f"cannot read {text!r} as cards: {error}; write {FORMS}") from error
    return nbytes * count if len(nbytes) == 1 else nbytes


def _indices(words: str, text: str) -> tuple[int, ...]:
    parts = [word.strip() for word in words.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigurationError(f"cannot read {text!r} as cards: GPU numbers are 0, 1, 2, ...; write {FORMS}")
    indices = tuple(int(part) for part in parts)
    if len(set(indices)) != len(indices):
        raise ConfigurationError(f"{text!r} names a GPU twice; for shares of one GPU write logical:cuda:0:2x8GiB")
    return indices
