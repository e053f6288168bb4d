"""`poolrt.verify`: agrees where runs agree, and names the tensor where they do not."""

from __future__ import annotations

import warnings
from itertools import count

import pytest
import torch
import zoo
from torch import Tensor, nn

import poolrt


def cards() -> poolrt.Topology:
    return poolrt.virtual(cards=2, memory="64MiB")


def test_a_model_with_dropout_is_proven_equal():
    torch.manual_seed(0)
    result = poolrt.verify(
        lambda: zoo.bert(hidden_dropout_prob=0.1).double().train(), zoo._text_batch(), topology=cards(), micro_batches=3
    )
    assert result.ok
    assert result.plan.micro_batches == 3
    kinds = {(comparison.kind, comparison.name) for comparison in result.comparisons}
    assert {("output", "loss"), ("output", "logits"), ("gradient", "bert.embeddings.word_embeddings.weight")} <= kinds
    assert "0 out of tolerance" in str(result)


def test_one_micro_batch_is_equal_to_the_bit():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = poolrt.verify(zoo.Tied, zoo._tied_batch(), topology=cards(), micro_batches=1)
    torch.set_num_threads(threads)
    assert all(comparison.equal for comparison in result.comparisons)


FACTORS = count(1)


class Forgetful(nn.Module):
    """Multiplies by another number at every forward: no two runs agree."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * next(FACTORS))


def test_runs_that_differ_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", poolrt.SplitWarning)
        result = poolrt.verify(Forgetful, (torch.randn(4, 4),), topology=cards())
    assert not result.ok
    bad = {comparison.name for comparison in result.comparisons if not comparison.ok}
    assert "second.weight" in bad
    assert "second.weight" in str(result)


def test_a_model_that_cannot_learn_has_nothing_to_compare():
    with pytest.raises(poolrt.PoolrtError, match="no gradient to compare"):
        poolrt.verify(lambda: zoo.Tied().requires_grad_(False), zoo._tied_batch(), topology=cards())
