"""The profile of a model that is about to be pooled, from the first batch it is given."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from poolrt.planning.limits import OutputCard
from poolrt.runtime.batches.microbatch import Call, batch_size_of
from poolrt.runtime.decide import Options
from poolrt.runtime.measuring.measure import Measured, measure, threads_per_lane, to_layer
from poolrt.runtime.on_cards import OnCards
from poolrt.runtime.placing.alias import Aliases
from poolrt.runtime.state.layers import Layer
from poolrt.topology.topology import Topology


def measured_with(
    call: Call,
    on_cards: OnCards,
    layers: Sequence[Layer],
    topology: Topology,
    options: Options,
    output_card: OutputCard,
) -> Measured:
    """Profile a model with this batch; the model stays as it is.

    Whole layers are measured on the cards, or, if the weights or one layer's work do not fit there, where the model
    came from. What stages are to split is measured there in any case: there it is whole.

    Args:
        call: the batch.
        on_cards: the model.
        layers: of the model.
        topology: the cards.
        options: what the user asked for.
        output_card: where whole outputs are put together.

    Raises:
        torch.OutOfMemoryError: if the model does not even run where it came from.
    """

    def here(in_place: Callable[[], AbstractContextManager[None]]) -> Measured:
        with on_cards.unhooked():
            return measure(
                on_cards.placement.model,
                on_cards.forward,
                layers,
                to_layer(layers[0].module, call) if layers else call,
                batch_size=batch_size_of(call, options.batch_dim) or 1,
                gathered=output_card != "host",
                threads=threads_per_lane(topology),
                in_place=in_place,
            )

    if options.stages:
        return here(nullcontext)
    try:
        return here(lambda: Aliases(on_cards.placement, learning=True).in_place())
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
    on_cards.bring_weights_back()
    return here(nullcontext)
