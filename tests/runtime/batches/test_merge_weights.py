"""whole = sum of w_i * part_i: the weights, checked against the formula they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poolrt.runtime.batches.merge_weights import CannotMergeError, merge_weights, stories_agree
from poolrt.runtime.batches.rules import ClampedSum, Denominator, Mean, Rule, Sum, Unknown


def mean(*counts: float, least: float = -math.inf, **options: object) -> Mean:
    return Mean(tuple(Denominator(count, least) for count in counts), **options)


parts = st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 10)), min_size=1, max_size=6)


@given(parts=parts, least=st.floats(0.01, 5))
def test_clamped_means_follow_the_formula(parts: list[tuple[float, float]], least: float) -> None:
    means = [sum_ / max(least, count) for sum_, count in parts]
    weights = merge_weights("loss", [mean(count, least=least) for _, count in parts])
    whole = sum(sum_ for sum_, _ in parts) / max(least, sum(count for _, count in parts))
    merged = sum(w * m for w, m in zip(weights, means, strict=True))
    assert merged == pytest.approx(whole, rel=1e-9, abs=1e-9)


@given(counts=st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_weights_of_plain_means_add_up_to_one(counts: list[int]) -> None:
    weights = merge_weights("loss", [mean(float(count)) for count in counts])
    assert sum(weights) == pytest.approx(1)
    if any(counts):
        assert [weight == 0 for weight in weights] == [count == 0 for count in counts]


def test_sums_count_fully() -> None:
    assert merge_weights("loss", [Sum((2.0,)), Sum((2.0,))]) == [1.0, 1.0]


def test_counts_may_be_tensors_on_any_card() -> None:
    assert merge_weights("loss", [mean(torch.tensor(3)), mean(torch.tensor(1))]) == [0.75, 0.25]


@pytest.mark.parametrize(
    "rules",
    [
        [Unknown(), Unknown()],
        [None, None],
        [Sum(), mean(1.0)],
        [mean(1.0), mean(1.0, 1.0)],
        [ClampedSum(Denominator(1.0, 1.0))] * 2,
        [mean(1.0, 1.0), mean(1.0, 3.0)],
        [Sum((2.0,)), Sum((3.0,))],
        [Sum((2.0,)), Sum()],
        [mean(1.0, constants=(torch.tensor(2.0),)), mean(1.0, constants=(torch.tensor(2.5),))],
        [mean(0.1, least=1.0, shifted=True)] * 2,
    ],
)
def test_what_cannot_be_merged_names_the_output(rules: list[Rule | None]) -> None:
    with pytest.raises(CannotMergeError, match="'loss'"):
        merge_weights("loss", rules)


def test_several_denominators_that_split_alike() -> None:
    assert merge_weights("loss", [mean(3.0, 30.0), mean(1.0, 10.0)]) == pytest.approx([0.75, 0.25])


def test_counts_of_the_parts_must_add_up_to_the_wholes() -> None:
    assert stories_agree(mean(4.0), [mean(3.0), mean(1.0)])
    assert not stories_agree(mean(4.0), [mean(4.0), mean(4.0)])
    assert not stories_agree(mean(4.0, 5.0), [mean(3.0, 5.0), mean(1.0, 5.0)])
    assert not stories_agree(mean(4.0), [mean(3.0), Sum()])
    assert not stories_agree(mean(4.0), [mean(3.0), mean(1.0, 1.0)])
    assert stories_agree(Sum(items=(4.0,)), [Sum(items=(3.0,)), Sum(items=(1.0,))])
    assert not stories_agree(Sum(items=(4.0,)), [Sum(items=(4.0,)), Sum(items=(4.0,))])
    assert stories_agree(mean(0.0), [mean(0.0), mean(0.0)])


def test_constants_of_the_parts_must_be_the_wholes() -> None:
    assert stories_agree(Sum((2.0,)), [Sum((torch.tensor(2.0),)), Sum((2.0,))])
    assert not stories_agree(Sum((8.0,)), [Sum((4.0,)), Sum((4.0,))])
    assert not stories_agree(mean(4.0, constants=(1.0,)), [mean(3.0), mean(1.0)])
