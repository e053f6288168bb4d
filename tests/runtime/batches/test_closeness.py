from __future__ import annotations

import pytest
import torch

from poolrt.runtime.batches.closeness import SCALAR_TOLERANCE, TOLERANCE, is_close


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_differences_within_the_tolerance_and_beyond(dtype: torch.dtype) -> None:
    whole = torch.tensor([0.0, 100.0], dtype=dtype)
    assert is_close(whole + 10 * TOLERANCE[dtype], whole)
    assert not is_close(whole + 1000 * TOLERANCE[dtype], whole)


@pytest.mark.parametrize("dtype", list(SCALAR_TOLERANCE))
def test_losses_are_compared_more_strictly(dtype: torch.dtype) -> None:
    loss = torch.tensor(1.0, dtype=dtype)
    assert SCALAR_TOLERANCE[dtype] < TOLERANCE[dtype]
    assert is_close(loss, loss)
    assert not is_close(loss * (1 + 3 * SCALAR_TOLERANCE[dtype]), loss)


def test_whole_numbers_must_be_equal() -> None:
    assert is_close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not is_close(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert not is_close(torch.tensor([True]), torch.tensor([False]))


def test_shape_and_kind_must_agree() -> None:
    assert not is_close(torch.ones(2), torch.ones(2, 1))
    assert not is_close(torch.ones(2), torch.ones(2, dtype=torch.float64))


def test_what_is_no_number_must_be_none_in_both() -> None:
    odd = torch.tensor([float("nan"), float("inf"), 1.0])
    assert is_close(odd, odd.clone())
    assert not is_close(torch.tensor([0.0, float("inf"), 1.0]), odd)
    assert not is_close(torch.tensor([float("nan"), 5.0, 1.0]), odd)


def test_empty_tensors_are_equal() -> None:
    assert is_close(torch.ones(0, 3), torch.ones(0, 3))


def test_zeros_allow_nothing() -> None:
    assert not is_close(torch.tensor([1e-12, 0.0]), torch.zeros(2))
