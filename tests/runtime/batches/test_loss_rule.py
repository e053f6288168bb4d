"""What the mean of each loss divides by; that the merged value and gradient are right is tested with merge_rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from poolrt.runtime.batches.loss_rule import LOSSES, loss_rule
from poolrt.runtime.batches.rules import Mean, Sum

SCORES = torch.zeros(6, 3)
LABELS = torch.tensor([0, 1, 2, -100, 1, -100])


def count(rule: object) -> float:
    assert isinstance(rule, Mean)
    (denominator,) = rule.denominators
    return float(denominator.counted)


def test_labels_that_count() -> None:
    assert count(loss_rule(F.cross_entropy, (SCORES, LABELS), {})) == 4
    assert count(loss_rule(F.cross_entropy, (SCORES, LABELS), {"ignore_index": 1})) == 4
    weight = torch.tensor([1.0, 10.0, 100.0])
    assert count(loss_rule(F.nll_loss, (SCORES, LABELS), {"weight": weight})) == 121


def test_probabilities_count_by_sample() -> None:
    assert count(loss_rule(F.cross_entropy, (SCORES, SCORES), {})) == 6
    assert count(loss_rule(F.cross_entropy, (torch.zeros(6, 3, 4), torch.zeros(6, 3, 4)), {})) == 24
    assert count(loss_rule(F.cross_entropy, (torch.zeros(3), torch.zeros(3)), {})) == 1


@pytest.mark.parametrize("loss", sorted(LOSSES - {F.cross_entropy, F.nll_loss}, key=lambda loss: loss.__name__))
def test_elementwise_losses_count_elements(loss: object) -> None:
    assert count(loss_rule(loss, (SCORES, SCORES), {})) == 18
    assert count(loss_rule(loss, (SCORES, SCORES[:1]), {})) == 18
    assert loss_rule(loss, (SCORES, SCORES), {"reduction": "sum"}) == Sum(items=(18.0,))
    assert loss_rule(loss, (SCORES, SCORES), {"weight": SCORES}) is None


def test_batchmean_counts_samples() -> None:
    assert count(loss_rule(F.kl_div, (SCORES, SCORES), {"reduction": "batchmean"})) == 6


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"size_average": False}, {"reduce": True}], ids=str)
def test_what_has_no_rule(options: dict) -> None:
    assert loss_rule(F.cross_entropy, (SCORES, LABELS), options) is None
    assert loss_rule(F.cross_entropy, (SCORES, LABELS, None), {}) is None
