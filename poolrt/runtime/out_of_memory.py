"""Out of memory, explained: which card, what was asked, what is free, what fills it, what would make it fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from poolrt.units import format_nbytes


class OutOfMemoryError(torch.OutOfMemoryError):
    """torch's out-of-memory error with the contents of the card that is full.

    Attributes:
        card: index of the card, or None if the error came from elsewhere (the host).
        weights_nbytes, gradients_nbytes, optimizer_nbytes, other_nbytes: what fills the card after the step was undone.
    """

    card: int | None = None
    weights_nbytes: int = 0
    gradients_nbytes: int = 0
    optimizer_nbytes: int = 0
    other_nbytes: int = 0


def card_named_in(error: torch.OutOfMemoryError, devices: Sequence[torch.device]) -> int | None:
    """The card a lane marked on `error`, else the one whose device the message names; None for the host."""
    marked: int | None = getattr(error, "card", None)
    named = re.search(r"(?:vcard:|GPU )(\d+)", str(error))
    if marked is not None or named is None:
        return marked
    ordinals = [device.index for device in devices]
    return ordinals.index(int(named[1])) if int(named[1]) in ordinals else None


def explained(
    error: torch.OutOfMemoryError,
    *,
    card: int | None,
    device: torch.device | None,
    weights_nbytes: int,
    gradients_nbytes: int,
    optimizer_nbytes: int,
    hints: Sequence[str],
) -> OutOfMemoryError:
    """`error` with the card's contents in its message and attributes."""
    first_line = str(error).splitlines()[0]
    if card is None or device is None:
        return OutOfMemoryError(first_line)
    free, total = torch.get_device_module(device).mem_get_info(device)
    other = max(0, total - free - weights_nbytes - gradients_nbytes - optimizer_nbytes)
    new = OutOfMemoryError(
        f"card {card} ({device}) is out of memory: {first_line}\n"
        f"Of its {format_nbytes(total)}, weights take {format_nbytes(weights_nbytes)}, gradients "
        f"{format_nbytes(gradients_nbytes)}, optimizer state {format_nbytes(optimizer_nbytes)}, everything else "
        f"{format_nbytes(other)}; with this step undone {format_nbytes(free)} are free for activations and workspace.\n"
        f"What would make it fit: {'; '.join(hints)}."
    )
    new.card = card
    new.weights_nbytes = weights_nbytes
    new.gradients_nbytes = gradients_nbytes
    new.optimizer_nbytes = optimizer_nbytes
    new.other_nbytes = other
    return new
