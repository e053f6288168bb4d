"""Keys and values cut into the cards' heads, and put together again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poolrt.errors import ModelError
from poolrt.planning.split import Split


def cut_heads(whole: Tensor, split: Split | None, devices: Sequence[torch.device]) -> list[Tensor]:
    """Each card's heads of keys or values, on its device. A tensor without that dimension goes to all as it is."""
    if split is None or whole.dim() <= split.dim:
        return [whole.to(device, copy=True) for device in devices]  # two cards may be one device
    _check_size(whole.shape[split.dim], split.size)
    return [
        torch.cat([whole.narrow(split.dim, start, stop - start) for start, stop in ranges], split.dim).to(device)
        for ranges, device in zip(split.pieces, devices, strict=True)
    ]


def joined_heads(pieces: Sequence[Tensor], split: Split | None, device: torch.device) -> Tensor:
    """The inverse: all heads in the model's order, each once; what several cards hold is its owner's."""
    if split is None or pieces[0].dim() <= split.dim:
        return pieces[0].to(device)
    runs: list[tuple[int, Tensor]] = []
    for card, piece in enumerate(pieces):
        _check_size(piece.shape[split.dim], split.piece_sizes[card])
        for start, stop in split.owned(card):
            ((place, _),) = split.within(card, start, stop)
            runs.append((start, piece.narrow(split.dim, place, stop - start)))
    runs.sort(key=lambda run: run[0])
    return torch.cat([run.to(device) for _, run in runs], split.dim)


def _check_size(found: int, expected: int) -> None:
    if found != expected:
        raise ModelError(
            f"keys or values of a split layer have {found} heads where {expected} were seen when it was split; "
            "shard the model with a sample of this form"
        )
