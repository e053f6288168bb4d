"""Which slice of every weight and input a part of the row weight needs: asked of gradients.

    region:  y = W f(x; A, B, ...)              W is the row weight: y is linear in it

Keep some columns of W and zero the rest: whatever then has gradient zero is not needed by those columns. That tells the
rows of A (a head, a few hidden units) that belong to them, whatever the layout: fused, interleaved, grouped, 3-D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poolrt.planning.split import Range
from poolrt.runtime.regions.finding.probe import RegionProbe, differs, largest_of

_NOISE = 1e-11
"""a gradient this much smaller than the others' largest is rounding: softmax is blind to the bias of the keys"""

Need = dict[str, list[Tensor] | None]
"""for each weight and input, per dimension which indices are needed; None where nothing is"""


@dataclass(frozen=True)
class RowWeight:
    """A weight in which the region's output is linear, and the dimension that is cut."""

    name: str
    dim: int


class Needs:
    """Answers for one row weight of one probe."""

    def __init__(self, probe: RegionProbe, row: RowWeight) -> None:
        self.probe, self.row = probe, row
        self._weighting = probe.weighting(probe.first())

    @property
    def size(self) -> int:
        """Length of the dimension that is cut."""
        return self._weight.shape[self.row.dim]

    def masked(self, keep: Range) -> Tensor:
        """The row weight with all but a range of the cut dimension set to zero."""
        masked = torch.zeros_like(self._weight)
        start, length = keep[0], keep[1] - keep[0]
        masked.narrow(self.row.dim, start, length).copy_(self._weight.narrow(self.row.dim, start, length))
        return masked

    def of(self, keep: Range) -> Need:
        """What this range of the row weight needs, of the inputs and all other weights."""
        return self._asked(self.masked(keep))

    def of_nothing(self) -> Need:
        """What reaches the output past the row weight: a bias after it, a residual."""
        return self._asked(torch.zeros_like(self._weight))

    @property
    def _weight(self) -> Tensor:
        return self.probe.parameters[self.row.name].detach()

    def _asked(self, row_weight: Tensor) -> Need:
        others = {name: weight for name, weight in self.probe.parameters.items() if name != self.row.name}
        wanted = {**others, **{f"input {path}": tensor for path, tensor in self.probe.inputs.items()}}
        output = self.probe.first({self.row.name: row_weight})
        if not output.requires_grad:
            return dict.fromkeys(wanted)
        gradients = torch.autograd.grad((output * self._weighting).sum(), list(wanted.values()), allow_unused=True)
        noise = _NOISE * largest_of(gradients)
        return {name: _by_dimension(gradient, noise) for name, gradient in zip(wanted, gradients, strict=True)}


def _by_dimension(gradient: Tensor | None, noise: float) -> list[Tensor] | None:
    if gradient is None or largest_of([gradient]) <= noise:
        return None
    used = gradient != 0
    return [used.movedim(dim, 0).flatten(1).any(1) if used.dim() > 1 else used.clone() for dim in range(gradient.dim())]


def row_weights(probe: RegionProbe, first: Sequence[str] = ()) -> Iterator[RowWeight]:
    """The weights that may be row weights: the output is the sum of what the parts of such a weight give.

    Each is asked about when its turn comes: who has found what they look for asks no more.

    Args:
        probe: the region.
        first: names to begin with; others follow, the last registered first, as rows mostly are.
    """
    names = [name for name, weight in probe.parameters.items() if weight.dim() > 1]
    ordered = [*(name for name in first if name in names), *(name for name in reversed(names) if name not in first)]
    for name in ordered:
        for dim in reversed(range(probe.parameters[name].dim())):
            if _is_sum_of_parts(probe, RowWeight(name, dim)):
                yield RowWeight(name, dim)


def _is_sum_of_parts(probe: RegionProbe, row: RowWeight) -> bool:
    """f(half of W) + f(other half) - f(0) = f(W), for interleaved halves that both matter."""
    weight = probe.parameters[row.name].detach()
    if weight.shape[row.dim] < 2:
        return False
    shape = [-1 if dim == row.dim else 1 for dim in range(weight.dim())]
    even = (torch.arange(weight.shape[row.dim]) % 2 == 0).reshape(shape)
    with torch.no_grad():
        nothing = probe.first({row.name: torch.zeros_like(weight)})
        whole = probe.first()
        halves = [probe.first({row.name: weight * mask}) for mask in (even, ~even)]
    if not whole.is_floating_point() or any(not differs(nothing, half, probe.tolerance) for half in halves):
        return False
    return not differs(whole, halves[0] + halves[1] - nothing, probe.tolerance)
