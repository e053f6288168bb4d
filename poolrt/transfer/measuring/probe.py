"""The only proof that a way between two cards works: known bytes are sent and looked at where they arrive.

    host            card `source`          card `target`        host
    pattern --up--> pattern                complement
                       '------- the copy ------->'
                                           what arrived --down--> compared with the pattern, byte by byte

The result goes down to the host by the target's own way, not back over the link that is on trial. The target holds the
complement before, so a byte that no copy reached differs in every bit. That drivers claim a peer works proves nothing:
behind an IOMMU that translates, copies are reported done and deliver zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from poolrt.transfer.measuring.leg import HungError, Leg, limit_s, wait_within
from poolrt.transfer.measuring.pattern import WORD_NBYTES, Patterns, key_of, wrong_bytes
from poolrt.transfer.measuring.verdict import Proof
from poolrt.units import MIB

PROBE_NBYTES = (1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)

SentNbytes = Callable[[int], int | None]
"""from a card's index to the bytes that it ever sent over its NVLinks; None where nothing counts them"""

_WATCHED_COPIES = 4
"""of the largest size, where byte counters are read: 256 MiB stand out from other traffic"""


def prove(
    leg: Leg,
    source: int,
    target: int,
    patterns: Patterns,
    sizes: Sequence[int],
    sent_nbytes: SentNbytes = lambda card: None,
) -> Iterator[Proof]:
    """Send each size once; ends after the first copy that failed or lied.

    Args:
        leg: between buffers of at least the largest size, on cards `source` and `target`.
        source: index of the card that is read.
        target: index of the card that is written.
        patterns: of at least the largest size.
        sizes: bytes of each copy, multiples of 8.
        sent_nbytes: reads the NVLink byte counters of a card, around copies of the largest size.

    Raises:
        HungError: if a copy did not end; its proof was given before.
    """
    for nbytes in sizes:
        expected = patterns.words(key_of(source, target, nbytes), nbytes)
        before = sent_nbytes(source) if nbytes == max(sizes) else None
        copies = 1 if before is None else _WATCHED_COPIES
        try:
            wrong_nbytes, first_wrong = wrong_bytes(_sent(leg, expected, copies), expected)
        except RuntimeError as error:  # torch's errors of a device, and HungError
            yield Proof(route=leg.route, source=source, target=target, nbytes=nbytes, failure=_words_of(error))
            if isinstance(error, HungError):
                raise
            return
        after = None if before is None else sent_nbytes(source)
        yield Proof(
            route=leg.route,
            source=source,
            target=target,
            nbytes=nbytes,
            wrong_nbytes=wrong_nbytes,
            first_wrong=first_wrong,
            nvlink_nbytes=None if before is None or after is None else (after - before) // copies,
        )
        if wrong_nbytes:
            return


def prove_host(card: int, buffer: Tensor, patterns: Patterns) -> Proof:
    """Send a pattern up to a card and down again: every other proof leans on this one."""
    expected = patterns.words(key_of(card, card, buffer.nbytes), buffer.nbytes)
    try:
        buffer.copy_(~expected)
        buffer.copy_(expected)
        wrong_nbytes, first_wrong = wrong_bytes(buffer.cpu(), expected)
    except RuntimeError as error:
        return Proof(route="HOST", source=card, target=card, nbytes=buffer.nbytes, failure=_words_of(error))
    return Proof(
        route="HOST",
        source=card,
        target=card,
        nbytes=buffer.nbytes,
        wrong_nbytes=wrong_nbytes,
        first_wrong=first_wrong,
    )


def _sent(leg: Leg, expected: Tensor, copies: int) -> Tensor:
    """What is at the target after so many equal copies, brought to the host."""
    words = expected.nbytes // WORD_NBYTES
    source, target = leg.source[:words], leg.target[:words]
    source.copy_(expected)
    target.copy_(~expected)
    for tensor in (source, target):
        torch.get_device_module(tensor.device).synchronize(tensor.device)
    for _ in range(copies):
        leg.queue(expected.nbytes)
    wait_within([leg.done()], limit_s(copies * expected.nbytes))
    return target.cpu()


def _words_of(error: RuntimeError) -> str:
    """The first line: what follows in torch's errors is advice about debugging kernels."""
    return str(error).partition("\n")[0] or type(error).__name__
