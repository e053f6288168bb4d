"""What a script put into a model after it was placed lies where the script made it; torch's error does not say what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from poolrt.errors import ModelError
from poolrt.runtime.placing.place import named_tensors


@contextmanager
def latecomers_named(model: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """A block in which torch's error about tensors on several devices becomes one that names who came late, if any did.

    Args:
        model: placed.
        devices: of the cards.

    Raises:
        ModelError: in place of torch's, where parameters or buffers are on no card.
    """
    try:
        yield
    except RuntimeError as error:
        late = on_no_card(model, devices) if "same device" in str(error) else []
        if not late:
            raise
        raise ModelError(
            f"{len(late)} parameters or buffers are on no card, such as {late[0]}: they came into the model after "
            "poolrt.shard had moved what was there. Make the change before poolrt.shard, or move them to the card of "
            "the layer they are in"
        ) from error


def on_no_card(model: nn.Module, devices: Sequence[torch.device]) -> list[str]:
    """Names and devices of parameters and buffers that are elsewhere than the cards."""
    return [f"{name} on {tensor.device}" for name, tensor in named_tensors(model) if tensor.device not in devices]
