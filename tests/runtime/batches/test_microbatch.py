"""Scatter and gather: the parts are the batch, and their outputs are the outputs of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from poolrt.runtime.batches.merge_weights import CannotMergeError
from poolrt.runtime.batches.microbatch import (
    Gathered,
    OutputRule,
    batch_size_of,
    gather,
    is_split,
    scatter,
    split_gradient,
)
from poolrt.runtime.batches.rules import Denominator, Mean, Sum
from poolrt.runtime.state.trees import Leaf, Tree, flatten

Devices = tuple[torch.device, torch.device]

CONCATENATE, SCALAR, SAME = OutputRule("concatenate"), OutputRule("scalar"), OutputRule("same")


def call(**arguments: Any) -> tuple[tuple[()], dict[str, Any]]:
    return (), arguments


def outputs(*tensors: Tensor) -> list[Tree]:
    return [Tree((Leaf("out", tensor),), next, False) for tensor in tensors]


def mean(value: float, count: float, **options: Any) -> Tensor:
    scalar = torch.tensor(value, **options)
    scalar._poolrt_merge_rule = Mean((Denominator(count),))
    return scalar


def gathered(rule: OutputRule, *tensors: Tensor, device: torch.device | None = None) -> Tensor:
    return gather(outputs(*tensors), [rule], device).tensors[0]


# ---- scatter


def test_uneven_batches_give_the_larger_parts_first() -> None:
    parts = scatter(call(x=torch.arange(10)), 4, 0)
    assert [part[1]["x"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_parts_are_views_of_the_batch() -> None:
    x = torch.arange(4)
    assert scatter(call(x=x), 2, 0)[1][1]["x"].data_ptr() == x[2:].data_ptr()


def test_what_has_not_the_batchs_size_goes_to_every_part_whole() -> None:
    ids, mask, bias = torch.zeros(6, 3), torch.ones(6, 3), torch.ones(3, 3)
    temperature = torch.tensor(2.0)
    parts = scatter(((ids, temperature), {"extra": {"mask": mask, "bias": bias}, "n": 3}), 3, 0)
    for part in parts:
        assert part[0][0].shape == (2, 3)
        assert part[0][1] is temperature
        assert part[1]["extra"]["mask"].shape == (2, 3)
        assert part[1]["extra"]["bias"] is bias
        assert part[1]["n"] == 3


def test_batch_in_another_dimension() -> None:
    source = torch.arange(8).view(2, 4)
    parts = scatter(call(source=source, vector=torch.zeros(4)), 2, 1)
    assert parts[0][1]["source"].tolist() == [[0, 1], [4, 5]]
    assert parts[0][1]["vector"].shape == (4,)


def test_one_part_and_a_call_without_tensors_stay_as_they_are() -> None:
    given = call(x=torch.zeros(4))
    assert scatter(given, 1, 0)[0] is given
    nothing = call(n=3)
    assert scatter(nothing, 2, 0) == [nothing]


def test_the_size_of_a_batch_is_that_of_most_tensors() -> None:
    assert batch_size_of(call(a=torch.zeros(6), b=torch.zeros(6, 2), c=torch.zeros(3)), 0) == 6
    assert batch_size_of(call(a=torch.zeros(6, 2)), 1) == 2
    assert batch_size_of(call(a=torch.zeros(())), 0) is None
    assert is_split(torch.zeros(6, 1), 6, 0)
    assert not is_split(torch.zeros(6), 6, 1)


# ---- gather


def test_concatenation_along_any_dimension_with_uneven_parts() -> None:
    whole = torch.arange(15.0).view(3, 5)
    assert torch.equal(gathered(OutputRule("concatenate", 1), *whole.split([2, 2, 1], 1)), whole)
    assert torch.equal(gathered(CONCATENATE, *whole.split([2, 1])), whole)


def test_outputs_come_back_to_the_device_asked_for(devices: Devices) -> None:
    parts = [torch.ones(2, device=devices[1]), torch.zeros(1, device=devices[1])]
    for device in (devices[0], torch.device("cpu")):
        whole = gathered(CONCATENATE, *parts, device=device)
        assert whole.device == device
        assert whole.tolist() == [1, 1, 0]
    assert gathered(CONCATENATE, *parts).device == devices[1]


def test_state_stays_on_its_cards(devices: Devices) -> None:
    """A key-value cache is used again by the layer that made it."""
    parts = [Tree((Leaf("cache.keys", torch.ones(1, device=devices[1]), True),), next, False) for _ in range(2)]
    assert gather(parts, [CONCATENATE], torch.device("cpu")).tensors[0].device == devices[1]


def test_gathered_outputs_have_no_history_and_no_memory_in_common_with_the_parts() -> None:
    part = torch.ones(2, requires_grad=True) * 2
    whole = gathered(CONCATENATE, part, part)
    assert not whole.requires_grad
    whole.zero_()
    assert part.tolist() == [2, 2]
    loss = torch.ones((), requires_grad=True) * 2
    single = gathered(SAME, loss)
    single.zero_()
    assert loss.item() == 2


def test_means_are_weighted() -> None:
    assert gathered(SCALAR, mean(1.0, 3.0), mean(5.0, 1.0)).item() == 2.0


def test_sums_are_added_and_whole_numbers_stay_whole() -> None:
    parts = [torch.tensor(2**53), torch.tensor(3)]
    for part in parts:
        part._poolrt_merge_rule = Sum()
    whole = gathered(SCALAR, *parts)
    assert whole.dtype == torch.int64
    assert whole.item() in (2**53 + 2, 2**53 + 3, 2**53 + 4)


def test_a_part_without_weight_may_be_not_a_number() -> None:
    assert gathered(SCALAR, mean(float("nan"), 0.0), mean(5.0, 2.0)).item() == 5.0


def test_a_scalar_in_half_precision_is_summed_in_more() -> None:
    parts = [mean(value, 1.0, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 1.0)]
    whole = gathered(SCALAR, *parts)
    assert whole.dtype == torch.bfloat16
    assert whole.item() == torch.tensor(259 / 4, dtype=torch.bfloat16).item()


def test_same_is_taken_once_and_must_stay_the_same() -> None:
    bias = torch.randn(3, 3)
    assert torch.equal(gathered(SAME, bias, bias.clone()), bias)
    with pytest.raises(CannotMergeError, match="now is not"):
        gathered(SAME, bias, bias + 1)


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (CONCATENATE, (torch.ones(2, 3), torch.ones(2, 4))),
        (CONCATENATE, (torch.ones(2, 3), torch.ones(2))),
        (SCALAR, (torch.tensor(1.0), torch.tensor(1.0))),
        (SCALAR, (mean(1.0, 1.0), torch.tensor(1.0))),
    ],
    ids=["another width", "another rank", "no story", "one story"],
)
def test_what_does_not_fit_its_rule_is_refused(rule: OutputRule, parts: tuple[Tensor, ...]) -> None:
    with pytest.raises(CannotMergeError, match="out"):
        gathered(rule, *parts)


def test_another_number_of_outputs_or_another_constant_is_refused() -> None:
    with pytest.raises(CannotMergeError, match="2 tensors"):
        gather([flatten([torch.ones(1)] * 2)] * 2, [CONCATENATE], None)
    parts = [flatten({"x": torch.ones(1), "accuracy": accuracy}) for accuracy in (0.5, 0.75)]
    with pytest.raises(CannotMergeError, match="accuracy"):
        gather(parts, [CONCATENATE], None)


def test_a_step_with_one_part_needs_no_rule() -> None:
    assert gathered(SAME, torch.tensor(3.0)).item() == 3.0


# ---- gradients


def pull_back(rule: OutputRule, parts: list[Tensor]) -> tuple[Gathered, list[Tensor]]:
    """Gradients of each part's input for a loss of the whole output; the inputs are leaves under `parts`."""
    whole = gather(outputs(*parts), [rule], None)
    output = whole.tensors[0].requires_grad_()
    (output * torch.arange(1.0, 1 + output.numel()).view(output.shape)).sum().backward()
    pieces = split_gradient(output.grad, rule, whole.weights[0], parts)
    for part, piece in zip(parts, pieces, strict=True):
        if piece is not None:
            part.backward(piece)
    return whole, pieces


def test_gradients_of_concatenated_outputs_go_to_the_rows_they_came_from() -> None:
    inputs = torch.ones(3, 2, requires_grad=True)
    pull_back(CONCATENATE, [part * 10 for part in inputs.split([2, 1])])
    assert inputs.grad.tolist() == [[10, 20], [30, 40], [50, 60]]


def test_gradients_of_a_mean_are_those_of_the_direct_formula() -> None:
    inputs = torch.randn(5, dtype=torch.float64, requires_grad=True)
    parts = [part.pow(2).mean() for part in inputs.split([3, 2])]
    for part, count in zip(parts, (3.0, 2.0), strict=True):
        part._poolrt_merge_rule = Mean((Denominator(count),))
    pull_back(SCALAR, parts)
    torch.testing.assert_close(inputs.grad, 2 * inputs.detach() / 5)


def test_a_part_without_weight_gets_no_gradient() -> None:
    leaf = torch.ones((), requires_grad=True)
    counted = leaf * 3
    counted._poolrt_merge_rule = Mean((Denominator(2.0),))
    _, pieces = pull_back(SCALAR, [mean(float("nan"), 0.0), counted])
    assert pieces[0] is None
    assert leaf.grad.item() == 3.0


def test_an_output_all_parts_have_in_common_gives_its_gradient_to_one() -> None:
    """Each part computed it from the parameters; the whole batch computes it once."""
    bias = torch.ones(2, requires_grad=True)
    _, pieces = pull_back(SAME, [bias * 2, bias * 2])
    assert pieces[1] is None
    assert bias.grad.tolist() == [2, 4]


def test_gradients_arrive_on_the_cards_of_their_outputs(devices: Devices) -> None:
    parts = [torch.ones(2, device=devices[1]), torch.ones(1, device=devices[1])]
    pieces = split_gradient(torch.arange(3.0), CONCATENATE, [1.0, 1.0], parts)
    assert [piece.device for piece in pieces] == [devices[1]] * 2
    assert [piece.tolist() for piece in pieces] == [[0, 1], [2]]
    one = split_gradient(torch.tensor(2.0), SCALAR, [0.25, 0.75], parts)
    assert [piece.item() for piece in one] == [0.5, 1.5]
