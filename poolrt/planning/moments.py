r"""One GPipe step on one card, moment by moment: which bytes are there while each call runs.

    bytes            forward                backward                  optimizer step
                m0   m1   m2   m3  |  m0   m1   m2   m3  |
    activations /------------------\_____                              each micro-batch's go
    gradients                          /------------------------------| come in m0, then stay
    weights     ------------------------------------------------------|

Forward keeps, of every call, what it reads and the activations it saves, and of the last call the outputs. Backward
walks the micro-batches in order and the calls in reverse, and frees as it goes. While a call runs, its workspace is on
top. Within micro-batches of one size the last is the highest in forward and the first in backward, so only those are
visited: the cost is that of a few walks over the calls, however many micro-batches there are.

Moments are in bytes x samples: a micro-batch of b samples holds b parts of a whole batch of `batch_size` parts, and
whole numbers make the sums exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class Moment(NamedTuple):
    """What is on the card, in bytes x samples, without the optimizer's state, which is always there."""

    weights: int
    gradients: int
    activations: int
    workspace: int


class HeldCall(NamedTuple):
    """One call as its card sees it, for the whole batch, in bytes."""

    layer: int
    """position in the profile"""
    before: int
    """what is held while it runs: by earlier calls, and what this one reads"""
    after: int
    """what is held when its forward is done"""
    forward_workspace: int
    backward_workspace: int = 0
    glue_saved: int = 0
    """the part of `after` that the glue holds: its backward comes first and frees it"""
    glue_workspace: int = 0


class Gradient(NamedTuple):
    """Gradients that come into being together, at the first backward call of one of `layers`, in bytes."""

    nbytes: int
    largest: int
    """the biggest of them: it exists twice while more is added to it"""
    layers: frozenset[int]


class _Gradients(NamedTuple):
    """Gradients on the card around one call's backward, in bytes."""

    before: int
    after: int
    temporary: int
    """what exists twice while it is added"""


@dataclass(frozen=True, kw_only=True)
class CardStep:
    """Everything a step needs to know of one card; bytes for the whole batch."""

    sizes: tuple[int, ...]
    """samples in each micro-batch"""
    weights: int
    """weights and copies of tied weights"""
    inputs: int
    """the batch itself, if the first call is here"""
    outputs: int
    """each micro-batch's outputs, if the last call is here"""
    outputs_go_first: bool = False
    """whether a micro-batch's outputs are gone when its backward begins, or only when it ends"""
    gathered: int
    """the whole outputs, if they are put together here"""
    calls: tuple[HeldCall, ...]
    """in the order of forward"""
    gradients: tuple[Gradient, ...]

    @property
    def batch_size(self) -> int:
        """Samples in all micro-batches."""
        return sum(self.sizes)

    @property
    def kept(self) -> int:
        """What the whole batch holds here between forward and backward."""
        return (self.calls[-1].after if self.calls else 0) + self.outputs

    def forward(self) -> Iterator[Moment]:
        """The moments of forward that can be the highest: the last micro-batch of each size."""
        weights, inputs, kept = self.weights * self.batch_size, self.inputs * self.batch_size, self.kept
        ends = dict(zip(self.sizes, accumulate(self.sizes), strict=True))  # a later one of the same size wins
        for size, end in ends.items():
            base = inputs + kept * (end - size)
            for call in self.calls:
                yield Moment(weights, 0, base + call.before * size, call.forward_workspace * size)

    def between(self) -> Moment:
        """After forward, before backward: all activations, the outputs, and what was gathered from them."""
        held = self.inputs + self.gathered + self.kept
        return Moment(self.weights * self.batch_size, 0, held * self.batch_size, 0)

    def backward(self) -> Iterator[Moment]:
        """The moments of backward that can be the highest: the first micro-batch, then the first of each size."""
        by_layer: dict[int, list[int]] = {call.layer: [] for call in self.calls}
        for index, gradient in enumerate(self.gradients):
            for layer in gradient.layers:
                by_layer.setdefault(layer, []).append(index)  # a layer may hold a tied weight and never be called
        yield from self._walk_back(self.sizes[0], 0, self._first_gradients(by_layer))
        settled = self._settled_gradients(by_layer)
        starts = list(accumulate(self.sizes, initial=0))
        first_of_size = {size: start for size, start in reversed(list(zip(self.sizes, starts, strict=False))) if start}
        for size, start in first_of_size.items():
            yield from self._walk_back(size, start, settled)

    def _first_gradients(self, by_layer: dict[int, list[int]]) -> list[_Gradients]:
        """Gradients at each call of the first micro-batch, which makes them as it goes back.

        Where one is there already (a layer called again, a tied weight), more is added to it from a temporary.
        """
        there: set[int] = set()
        total, states = 0, []
        for call in reversed(self.calls):
            mine = by_layer[call.layer]
            temporary = max((self.gradients[index].largest for index in mine if index in there), default=0)
            made = sum(self.gradients[index].nbytes for index in mine if index not in there)
            states.append(_Gradients(before=total, after=total + made, temporary=temporary))
            total += made
            there.update(mine)
        return states[::-1]

    def _settled_gradients(self, by_layer: dict[int, list[int]]) -> list[_Gradients]:
        """Gradients at each call of any later micro-batch: all are there, more is added."""
        whole = sum(gradient.nbytes for gradient in self.gradients)
        largest = {layer: max(self.gradients[index].largest for index in mine) for layer, mine in by_layer.items()}
        return [_Gradients(before=whole, after=whole, temporary=largest[call.layer]) for call in self.calls]

    def _walk_back(self, size: int, start: int, gradients: list[_Gradients]) -> Iterator[Moment]:
        """Backward of one micro-batch, samples start..start+size-1: of each call the glue, then the layer."""
        batch = self.batch_size
        weights = self.weights * batch
        base = (self.inputs + self.gathered) * batch + self.kept * (batch - start - size)
        base += 0 if self.outputs_go_first else self.outputs * size
        for call, state in zip(self.calls, gradients, strict=True):
            yield Moment(weights, state.before * batch, base + call.after * size, call.glue_workspace * size)
            held = base + (call.after - call.glue_saved) * size
            yield Moment(weights, state.after * batch, held, call.backward_workspace * size + state.temporary * batch)
