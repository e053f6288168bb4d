"""Gradients that autograd is still adding up.

    from piece 0's node   [g0, -]  --.
                                      +-->  [g0, g1]  -->  hooks, .grad
    from piece 1's node   [-, g1]  --'

Everything but adding two of them sees them complete.
"""

from __future__ import annotations

import pytest
import torch

from poolrt.planning.split import Split
from poolrt.runtime.sharded.partial import PartialGradient, add_replicas
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import ShardedTensor

CPU = torch.device("cpu")
SHARDING = Sharding((4, 2), Split.from_counts((1, 3)), (CPU, CPU))


def partial(*parts: torch.Tensor | None) -> PartialGradient:
    return PartialGradient(parts, SHARDING, (2, 1))


def test_the_drawing() -> None:
    g0, g1 = torch.full((1, 2), 5.0), torch.full((3, 2), 7.0)
    both = partial(g0, None) + partial(None, g1)
    assert isinstance(both, PartialGradient)
    completed = both.completed()
    assert [piece.data_ptr() for piece in completed.pieces] == [g0.data_ptr(), g1.data_ptr()]


def test_what_nobody_gave_is_zero() -> None:
    completed = partial(None, torch.ones(3, 2)).completed()
    assert completed.whole().tolist() == [[0.0, 0.0]] + [[1.0, 1.0]] * 3


def test_two_from_one_card_are_added() -> None:
    total = partial(None, torch.ones(3, 2)) + partial(torch.ones(1, 2), torch.ones(3, 2))
    assert total.whole().tolist() == [[1.0, 1.0]] + [[2.0, 2.0]] * 3


@pytest.mark.parametrize("turned", [False, True])
def test_with_a_gradient_of_the_whole(turned: bool) -> None:
    whole, some = torch.arange(8.0).view(4, 2), partial(torch.ones(1, 2), None)
    total = some + whole if turned else whole + some
    assert isinstance(total, ShardedTensor)
    expected = whole.clone()
    expected[0] += 1
    assert torch.equal(total.whole(), expected)


def test_any_other_operator_sees_it_complete() -> None:
    some = partial(torch.ones(1, 2), None)
    assert some.sum().item() == 2.0
    assert (2 * some).whole().sum().item() == 4.0
    assert some.detach().shape == (4, 2)
    assert torch.equal(some[0], torch.ones(2))
    some.mul_(3.0)
    assert some.whole().sum().item() == 6.0


def test_replicas_are_added_in_the_order_of_cards() -> None:
    """Rows 1 and 2 are on both cards; 1e16 + 1 - 1e16 tells the order."""
    split = Split(dim=0, pieces=(((0, 3),), ((1, 3),), ((1, 2),)), replicated=((1, 3),))
    sharding = Sharding((3, 1), split, (CPU,) * 3)
    parts = [[[1.0], [1e16], [2.0]], [[1.0], [3.0]], [[-1e16]]]
    gradients = [torch.tensor(part, dtype=torch.float64) for part in parts]
    first, second, third = add_replicas(gradients, sharding)
    assert first.flatten().tolist() == [1.0, (1e16 + 1.0) - 1e16, 5.0]
    assert second.flatten().tolist() == first.flatten().tolist()[1:]
    assert third.flatten().tolist() == first.flatten().tolist()[1:2]
    assert gradients[0][1].item() == 1e16  # what was given is not written
