"""Which numbers of micro-batches to try."""

from __future__ import annotations

from poolrt.errors import ConfigurationError

MicroBatches = int | str
"""a number, or "auto" """

PER_CARD = 4
"""micro-batches per card from which on the bubble is negligible (GPipe, Huang et al. 2019, section 2.3)"""


def in_words(count: int) -> str:
    """1 micro-batch, 2 micro-batches."""
    return f"{count} micro-batch{'es' if count != 1 else ''}"


def micro_batch_counts(requested: MicroBatches, *, batch_size: int, cards: int, splittable: bool) -> tuple[int, ...]:
    """The numbers of micro-batches that planning considers, rising.

    Args:
        requested: a number, or "auto" for 1, 2, 4, 8, ... up to PER_CARD for each card.
        batch_size: samples in the batch; there are never more micro-batches than that.
        cards: how many cards there are.
        splittable: False if the model's result would change.

    Raises:
        ConfigurationError: if the request is neither "auto" nor a positive number.
    """
    is_number = isinstance(requested, int) and not isinstance(requested, bool) and requested >= 1
    if requested != "auto" and not is_number:
        raise ConfigurationError(f'micro_batches is "auto" or a positive number, not {requested!r}')
    if not splittable:
        return (1,)
    if isinstance(requested, int):
        return (min(requested, batch_size),)
    most = min(batch_size, PER_CARD * cards)
    return tuple(1 << power for power in range(most.bit_length()))
