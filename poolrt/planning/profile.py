r"""What was measured of a model: its layers, the order of its calls, and what each call costs.

A profile is a value. The probe of the runtime makes it, the planner reads it, nothing here knows torch.

    forward:   embed -> block0 -> glue -> block1 -> ... -> head -> glue (loss)
    calls:     \__0__/  \____1_____/   \__2__ ...       \______n______/

Code between two layers ("glue") is charged to the call before it: it runs on the card that call left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One placed module. A parameter tied to an earlier layer is not counted here but in `Profile.tied`."""

    name: str
    weight_nbytes: int
    """parameters and buffers that live with this layer"""
    trainable_nbytes: int
    """the part of weight_nbytes that gets a gradient and optimizer state"""
    largest_gradient_nbytes: int = 0
    """the biggest single gradient: it exists twice while a later micro-batch's is added to it"""
    trained_tensors: tuple[int, ...] = ()
    """bytes of each parameter in trainable_nbytes: how the pool rounds them; empty where that is not known"""
    frozen_tensors: tuple[int, ...] = ()
    """bytes of each of the other tensors in weight_nbytes; empty where that is not known"""


@dataclass(frozen=True, kw_only=True)
class TiedParameter:
    """A parameter of several layers. It lives with the first; another card that uses it holds a copy and a gradient."""

    name: str
    nbytes: int
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """One call of one layer, and the glue after it, for the whole probed batch."""

    layer: str
    forward_s: float
    backward_s: float
    saved_nbytes: int
    """activations kept from forward to backward, without what the call reads"""
    forward_workspace_nbytes: int
    """peak during forward, above what is kept"""
    backward_workspace_nbytes: int
    """peak during the layer's own backward, above what was kept before it; gradients of parameters are not counted"""
    output_nbytes: int
    """what the next call reads: kept on that call's card until its backward, and copied there if it is another"""
    accumulate_s: float = 0.0
    """what every further micro-batch pays to write its gradients of the layer's parameters and to add them"""
    glue_saved_nbytes: int = 0
    """the part of saved_nbytes that the glue keeps: it is free when the layer's own backward begins"""
    operations: int = 0
    """how many operators its forward starts; 0 where that was not counted"""
    glue_workspace_nbytes: int = 0
    """peak during the glue's backward, above what was kept before it; the layer's own gradients do not exist yet"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A model's layers and calls, measured with a batch of `batch_size` samples."""

    model: str
    """fingerprint of the model: class, parameter names, shapes and dtypes"""
    batch_size: int
    layers: tuple[LayerFacts, ...]
    calls: tuple[CallFacts, ...]
    tied: tuple[TiedParameter, ...] = ()
    input_nbytes: int = 0
    """tensors of the batch itself; they arrive on the first call's card"""
    gathered_nbytes: int = 0
    """whole outputs, put together from the micro-batches on the card they are returned on"""
    output_nbytes: int = 0
    """the same outputs as the micro-batches hold them, until backward"""
    returns_loss: bool = False
    """backward starts from a loss among the outputs, and the others go when it begins; else they stay until it ends"""

    def layer(self, name: str) -> LayerFacts:
        """The layer called `name`."""
        return next(layer for layer in self.layers if layer.name == name)

    def scaled(self, batch_size: int) -> Profile:
        """The profile of a batch of `batch_size` samples, by proportion: what depends on the batch grows with it."""
        ratio = batch_size / self.batch_size
        return replace(
            self,
            batch_size=batch_size,
            calls=tuple(_scaled(call, ratio) for call in self.calls),
            input_nbytes=round(self.input_nbytes * ratio),
            gathered_nbytes=round(self.gathered_nbytes * ratio),
            output_nbytes=round(self.output_nbytes * ratio),
        )


def _scaled(call: CallFacts, ratio: float) -> CallFacts:
    return replace(
        call,
        forward_s=call.forward_s * ratio,
        backward_s=call.backward_s * ratio,
        saved_nbytes=round(call.saved_nbytes * ratio),
        forward_workspace_nbytes=round(call.forward_workspace_nbytes * ratio),
        backward_workspace_nbytes=round(call.backward_workspace_nbytes * ratio),
        output_nbytes=round(call.output_nbytes * ratio),
        glue_saved_nbytes=round(call.glue_saved_nbytes * ratio),
        glue_workspace_nbytes=round(call.glue_workspace_nbytes * ratio),
    )


def micro_batch_sizes(batch_size: int, micro_batches: int) -> tuple[int, ...]:
    """Sizes of `micro_batches` parts of a batch, as torch.tensor_split makes them: the first ones are larger by one.

    >>> micro_batch_sizes(10, 4)
    (3, 3, 2, 2)
    """
    small, larger = divmod(batch_size, micro_batches)
    return tuple(small + (index < larger) for index in range(micro_batches))


def call_path(calls: Sequence[CallFacts], card_of: dict[str, int]) -> tuple[int, ...]:
    """The cards a micro-batch visits, in order; consecutive calls on one card are one visit."""
    path: list[int] = []
    for call in calls:
        if not path or path[-1] != card_of[call.layer]:
            path.append(card_of[call.layer])
    return tuple(path)
