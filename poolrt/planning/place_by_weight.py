"""The placement before anything was measured: by weight alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from poolrt.planning.profile import LayerFacts
from poolrt.topology.topology import Topology


def place_by_weight(layers: Sequence[LayerFacts], topology: Topology) -> dict[str, int]:
    """Layer name to card index: contiguous runs whose weights are in proportion to the cards' memory.

    Every card owns a part of the line of all weights, as long as its memory; a layer goes where its middle lies.

        weights   |--0--|-1-|------2------|--3--|
        cards     |-------0-------|------1------|        0: 0, 1     1: 2, 3

    Args:
        layers: in the order in which they are called, or defined.
        topology: at least one card.
    """
    # Layers without weights still go somewhere: each counts for at least a byte.
    weights = [max(1, layer.weight_nbytes) for layer in layers]
    memory = sum(card.memory_bytes for card in topology.cards)
    ends = list(accumulate(card.memory_bytes / memory for card in topology.cards[:-1]))
    total = sum(weights)
    middles = (end - weight / 2 for end, weight in zip(accumulate(weights), weights, strict=True))
    return {
        layer.name: sum(middle > end * total for end in ends) for layer, middle in zip(layers, middles, strict=True)
    }
