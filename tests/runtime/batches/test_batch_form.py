"""Which batches are of one form: a verdict about one must hold for the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poolrt.errors import SampleError
from poolrt.runtime.batches.batch_form import call_of, check_signature, form_of


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, labels: Tensor | None = None, *, mode: str = "plain", scale: float = 1.0) -> Tensor:
        return x


def form(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return form_of(model, (args, kwargs), 0)


def test_a_sample_is_given_as_the_model_is_called() -> None:
    x = torch.ones(1)
    assert call_of({"x": x}) == ((), {"x": x})
    assert call_of((x, 3)) == ((x, 3), {})
    assert call_of([x]) == ((x,), {})
    assert call_of(x) == ((x,), {})


def test_a_batch_encoding_is_a_mapping() -> None:
    from transformers import BatchEncoding

    assert list(call_of(BatchEncoding({"input_ids": torch.ones(1)}))[1]) == ["input_ids"]


def test_a_sample_that_does_not_fit_is_refused_in_words() -> None:
    model = Model()
    check_signature(model, call_of({"x": torch.ones(1), "mode": "fast"}))
    for sample in ({}, {"x": 1, "unknown": 2}, (1, 2, 3), {"labels": torch.ones(1)}):
        with pytest.raises(SampleError, match=r"Model\.forward\(x: .*given"):
            check_signature(model, call_of(sample))


def test_sizes_of_tensors_do_not_matter() -> None:
    model = Model()
    assert form(model, torch.ones(4, 2)) == form(model, torch.zeros(3, 7))
    assert form(model, torch.ones(4, 2), scale=1.0) == form(model, torch.ones(4, 2), scale=2.0)
    assert hash(form(model, torch.ones(4, 2), mode="plain")) == hash(form(model, torch.ones(4, 2), mode="plain"))


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(4, 2), "labels": torch.ones(4)},
        {"x": torch.ones(4, 2, dtype=torch.float64)},
        {"x": torch.ones(4, 2, 1)},
        {"x": torch.ones(4, 2), "mode": "contrastive"},
        {"x": torch.ones(4, 2), "mode": None},
        {"x": torch.ones(4, 2), "scale": 1},
        {"x": [torch.ones(4, 2)]},
        {"x": torch.ones(4, 2), "labels": {"kind": "soft"}},
    ],
    ids=str,
)
def test_what_makes_another_form(other: dict[str, Any]) -> None:
    model = Model()
    assert form(model, **other) != form(model, x=torch.ones(4, 2))
    assert form(model, **other) == form(model, **other)


def test_words_deep_inside_count_too() -> None:
    model = Model()
    assert form(model, torch.ones(2), labels={"kind": "soft"}) != form(model, torch.ones(2), labels={"kind": "hard"})


def test_a_tensor_that_happens_to_have_the_batchs_size_makes_another_form() -> None:
    """Positions of five tokens would be cut with a batch of five samples."""
    model = Model()
    usual = form(model, torch.ones(4, 5), labels=torch.arange(5))
    assert form(model, torch.ones(3, 5), labels=torch.arange(5)) == usual
    assert form(model, torch.ones(5, 5), labels=torch.arange(5)) != usual


def test_training_and_gradients_make_another_form() -> None:
    model, x = Model(), torch.ones(4, 2)
    training = form(model, x)
    with torch.no_grad():
        assert form(model, x) != training
    assert form(model.eval(), x) != training
    assert form(model.train(), x) == training


def test_a_frozen_batch_norm_makes_another_form() -> None:
    model, x = Model(), torch.ones(4, 2)
    training = form(model, x)
    model.norm.eval()
    assert form(model, x) != training


def test_an_object_with_a_state_of_its_own_makes_another_form() -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys = torch.ones(2)

    model, x = Model(), torch.ones(4, 2)
    assert form(model, x, labels=Cache()) != form(model, x, labels=None)
    assert form(model, {"x": x, "cache": Cache()}) != form(model, {"x": x})
    assert form(model, x, labels=Cache()) == form(model, x, labels=Cache())
