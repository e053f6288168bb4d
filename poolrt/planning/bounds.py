"""Between what two numbers lies what stays on a card if its weights and optimizer state are elsewhere.

Quick, from sums over the layers made once: thousands of runs of layers are looked at, and the peak of each would take
too long. There are gradients and activations at the same time, and on top of them a workspace:

    at least   what forward saved, or all gradients with what is still saved when the first micro-batch has gone back
    at most    all gradients and everything that was saved or read, and the largest workspace of all calls
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.profile import Profile, micro_batch_sizes


class Bounds:
    """Bounds for every run of layers, for one profile, optimizer and number of micro-batches.

    Args:
        profile: what was measured.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.
    """

    def __init__(self, profile: Profile, *, micro_batches: int, optimizer: str) -> None:
        trains = optimizer_cost(optimizer).trains
        first = micro_batch_sizes(profile.batch_size, micro_batches)[0]
        self._later = (profile.batch_size - first) / profile.batch_size
        reads = [0, *(call.output_nbytes for call in profile.calls[:-1])]
        saved = dict.fromkeys((layer.name for layer in profile.layers), 0)
        held = dict(saved)
        called = {call.layer for call in profile.calls}
        for call, read in zip(profile.calls, reads, strict=True) if trains else ():
            saved[call.layer] += call.saved_nbytes
            held[call.layer] += call.saved_nbytes + read
        trained = {layer.name: layer.trainable_nbytes if trains else 0 for layer in profile.layers}
        self._trained = _prefix_sums(trained.values())
        self._called = _prefix_sums(nbytes if name in called else 0 for name, nbytes in trained.items())
        self._saved = _prefix_sums(saved.values())
        self._held = _prefix_sums(held.values())
        self._most = _largest_of_a_call(profile, reads) + _of_the_batch(profile)

    def at_least(self, first: int, last: int) -> float:
        """Bytes that stay on a card with layers first..last-1 if everything that can be spilled is, or fewer."""
        saved = self._saved[last] - self._saved[first]
        called = self._called[last] - self._called[first]
        return max(self._trained[last] - self._trained[first], saved, called + self._later * saved)

    def at_most(self, first: int, last: int) -> int:
        """Bytes that stay on a card with layers first..last-1 if everything that can be spilled is, or more."""
        return self._trained[last] - self._trained[first] + self._held[last] - self._held[first] + self._most


def _largest_of_a_call(profile: Profile, reads: list[int]) -> int:
    """What one call can need beside what is held: what passes through it, a workspace, a gradient twice."""
    passing = max(read + call.output_nbytes for read, call in zip(reads, profile.calls, strict=True))
    workspace = max(
        max(call.forward_workspace_nbytes, call.backward_workspace_nbytes, call.glue_workspace_nbytes)
        for call in profile.calls
    )
    return passing + workspace + max(layer.largest_gradient_nbytes for layer in profile.layers)


def _of_the_batch(profile: Profile) -> int:
    """Inputs and outputs, and for each tied parameter a copy, its gradient, and that twice for a moment."""
    tied = sum(parameter.nbytes for parameter in profile.tied)
    return profile.input_nbytes + profile.gathered_nbytes + profile.output_nbytes + 3 * tied


def _prefix_sums(values: Iterable[int]) -> list[int]:
    return list(accumulate(values, initial=0))
