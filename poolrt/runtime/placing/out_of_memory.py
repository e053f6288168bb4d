"""Out of memory, explained: which card, what was asked, what is free, what fills it, what would make it fit."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from poolrt.runtime.placing.optimizer_state import state_nbytes
from poolrt.runtime.placing.place import Placement
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


class MemoryGuard:
    """Turns torch's out-of-memory errors into explained ones, for one pooled model.

    Args:
        placement: where its weights are now.
        hints: what would make it fit, asked for when needed.
    """

    def __init__(self, placement: Callable[[], Placement], hints: Callable[[], Sequence[str]]) -> None:
        self._placement = placement
        self._hints = hints

    def run(self, work: Callable[[], Any]) -> Any:
        """Run `work`.

        Raises:
            OutOfMemoryError: where torch raised its own; with what fills the card and what would make it fit.
        """
        try:
            return work()
        except OutOfMemoryError:
            raise
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            raise self._explained(error) from None  # no local name: a frame that holds its own error is never freed

    def _explained(self, error: torch.OutOfMemoryError) -> OutOfMemoryError:
        placement = self._placement()
        card = card_named_in(error, placement.devices)
        first_line = str(error).splitlines()[0]
        if card is None:
            return OutOfMemoryError(first_line)
        device = placement.devices[card]
        free, total = torch.get_device_module(device).mem_get_info(device)
        new = OutOfMemoryError("")
        new.card = card
        new.weights_nbytes = placement.weight_nbytes()[card]
        new.gradients_nbytes = placement.gradient_nbytes()[card]
        new.optimizer_nbytes = state_nbytes(placement.model.parameters()).get(device, 0)
        known = new.weights_nbytes + new.gradients_nbytes + new.optimizer_nbytes
        new.other_nbytes = max(0, total - free - known)
        new.args = (_message(new, device, first_line, free, total, self._hints()),)
        return new


def _message(
    error: OutOfMemoryError, device: torch.device, first_line: str, free: int, total: int, hints: Sequence[str]
) -> str:
    return (
        f"card {error.card} ({device}) is out of memory: {first_line}\n"
        f"Of its {format_nbytes(total)}, weights take {format_nbytes(error.weights_nbytes)}, gradients "
        f"{format_nbytes(error.gradients_nbytes)}, optimizer state {format_nbytes(error.optimizer_nbytes)}, everything "
        f"else {format_nbytes(error.other_nbytes)}; {format_nbytes(free)} are free for activations and workspace.\n"
        f"What would make it fit: {'; '.join(hints)}."
    )


def card_named_in(error: torch.OutOfMemoryError, devices: Sequence[torch.device]) -> int | None:
    """The card whose device the message names; of several on one device, the one a lane marked. None for the host."""
    named = re.search(r"(?:vcard:|GPU )(\d+)", str(error))
    if named is None:
        return None
    cards = [card for card, device in enumerate(devices) if device.index == int(named[1])]
    marked: int | None = getattr(error, "card", None)
    return marked if marked in cards else next(iter(cards), None)
