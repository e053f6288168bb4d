"""Scalars of a whole batch from the scalars of its parts: what is told must be true for every batch, not for most."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.batches.merge_weights import CannotMergeError, stories_agree
from poolrt.runtime.batches.microbatch import OutputRule, gather, split_gradient
from poolrt.runtime.batches.rules import Mean, Sum, Unknown
from poolrt.runtime.lanes.crossing import Crossings
from poolrt.runtime.lanes.glue import Glue
from poolrt.runtime.state.trees import Leaf, Tree

ROWS, CLASSES = 7, 5
PARTS = (3, 3, 1)
"""uneven on purpose: seven samples in three parts"""

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(ROWS, CLASSES, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    """The parts have 3, 1 and 1 labels that count."""
    return torch.tensor([0, 3, 2, -100, 4, -100, 1])


def watched(loss: Loss, *batch: Tensor) -> Tensor:
    """`loss` as glue code would run it."""
    with Glue(Crossings(), lambda: None):
        return loss(*batch)


def parts_of(loss: Loss, *batch: Tensor) -> list[Tensor]:
    columns = [tensor.split(PARTS) for tensor in batch]
    return [watched(loss, *row) for row in zip(*columns, strict=True)]


def merge(parts: list[Tensor]) -> tuple[Tensor, list[float]]:
    trees = [Tree((Leaf("loss", part),), next, False) for part in parts]
    gathered = gather(trees, [OutputRule("scalar")], None)
    return gathered.tensors[0], gathered.weights[0]


def assert_merges(loss: Loss, scores: Tensor, *batch: Tensor) -> None:
    """Value and gradient of the parts, merged, are those of the whole."""
    whole_scores = scores.clone().requires_grad_()
    whole = loss(whole_scores, *batch)
    whole.backward()
    split_scores = scores.clone().requires_grad_()
    parts = parts_of(loss, split_scores, *batch)
    merged, weights = merge(parts)
    torch.testing.assert_close(merged, whole.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)
    pieces = split_gradient(torch.ones_like(merged), OutputRule("scalar"), weights, parts)
    for part, piece in zip(parts, pieces, strict=True):
        if piece is not None:
            part.backward(piece)
    torch.testing.assert_close(split_scores.grad, whole_scores.grad, rtol=1e-12, atol=1e-14)


def assert_refused(loss: Loss, *batch: Tensor) -> None:
    """Either not merged, or caught by the check that compares the whole batch's story with its parts'."""
    parts = parts_of(loss, *batch)
    if stories_agree(rule_of(watched(loss, *batch)), [rule_of(part) for part in parts]):
        with pytest.raises(CannotMergeError):
            merge(parts)


def mean_of(scalar: Tensor) -> list[float]:
    rule = rule_of(scalar)
    assert isinstance(rule, Mean)
    return [float(denominator.counted) for denominator in rule.denominators]


# ---- torch's own losses


def test_cross_entropy_counts_labels_that_are_not_ignored(scores: Tensor, labels: Tensor) -> None:
    assert mean_of(watched(F.cross_entropy, scores, labels)) == [5.0]
    assert_merges(F.cross_entropy, scores, labels)


def test_a_mean_of_means_would_be_wrong(scores: Tensor, labels: Tensor) -> None:
    parts = parts_of(F.cross_entropy, scores, labels)
    assert abs(sum(parts) / len(parts) - F.cross_entropy(scores, labels)) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_index": 2},
        {"label_smoothing": 0.1},
        {"weight": torch.linspace(0.1, 2.0, CLASSES, dtype=torch.float64)},
        {"weight": torch.linspace(0.1, 2.0, CLASSES, dtype=torch.float64), "label_smoothing": 0.1},
        {"reduction": "sum"},
    ],
    ids=lambda options: "+".join(options),
)
def test_cross_entropy_with_options(scores: Tensor, labels: Tensor, options: dict) -> None:
    labels = labels.clamp(min=0) if "ignore_index" in options else labels
    assert_merges(lambda x, y: F.cross_entropy(x, y, **options), scores, labels)
    module = nn.CrossEntropyLoss(**options)
    assert_merges(lambda x, y: module(x, y), scores, labels)


def test_options_of_a_loss_may_be_given_by_position(scores: Tensor, labels: Tensor) -> None:
    weight = torch.linspace(0.1, 2.0, CLASSES, dtype=torch.float64)
    assert_merges(lambda x, y: F.cross_entropy(x, y, weight, None, 3, None, "sum"), scores, labels.clamp(min=0))
    assert_merges(lambda x, y: F.cross_entropy(x, y, weight), scores, labels)
    assert_merges(lambda x, y: F.cross_entropy(input=x, target=y), scores, labels)


def test_cross_entropy_with_probabilities_counts_samples(scores: Tensor) -> None:
    target = torch.rand(ROWS, CLASSES, dtype=torch.float64).softmax(-1)
    assert mean_of(watched(F.cross_entropy, scores, target)) == [float(ROWS)]
    assert_merges(F.cross_entropy, scores, target)


def test_cross_entropy_over_further_dimensions() -> None:
    scores = torch.randn(ROWS, CLASSES, 4, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (ROWS, 4))
    labels[0, :3] = -100
    assert_merges(F.cross_entropy, scores, labels)


def test_nll_loss(scores: Tensor, labels: Tensor) -> None:
    assert_merges(lambda x, y: F.nll_loss(x.log_softmax(-1), y), scores, labels)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regression_losses(scores: Tensor, loss: Callable[..., Tensor], reduction: str) -> None:
    assert_merges(lambda x, y: loss(x, y, reduction=reduction), scores, torch.randn(ROWS, CLASSES, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
def test_losses_of_probabilities(scores: Tensor) -> None:
    target = torch.rand(ROWS, CLASSES, dtype=torch.float64)
    assert_merges(F.binary_cross_entropy_with_logits, scores, target)
    assert_merges(lambda x, y: F.binary_cross_entropy(x.sigmoid(), y), scores, target)
    for reduction in ("mean", "batchmean", "sum"):
        assert_merges(lambda x, y, r=reduction: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction=r), scores, target)


def test_a_broadcast_target_is_counted_as_often_as_it_is_used(scores: Tensor) -> None:
    constant = torch.randn(CLASSES, dtype=torch.float64)
    assert_merges(lambda x: F.mse_loss(x, constant.expand_as(x)), scores)
    with pytest.warns(UserWarning, match="target size"):
        assert_merges(lambda x: F.mse_loss(x, constant), scores)


def test_the_old_way_to_choose_a_reduction_is_not_trusted(scores: Tensor, labels: Tensor) -> None:
    with pytest.warns(UserWarning, match="deprecated"):
        story = rule_of(watched(lambda x, y: F.cross_entropy(x, y, size_average=False), scores, labels))
    assert story == Unknown()


def test_an_unreduced_loss_is_no_scalar_and_has_no_story(scores: Tensor, labels: Tensor) -> None:
    assert rule_of(watched(lambda x, y: F.cross_entropy(x, y, reduction="none"), scores, labels)) is None


def test_a_mean_weighted_per_element_cannot_be_merged(scores: Tensor) -> None:
    target = torch.rand(ROWS, CLASSES, dtype=torch.float64)
    story = rule_of(watched(lambda x, y: F.binary_cross_entropy_with_logits(x, y, weight=y), scores, target))
    assert story == Unknown()


# ---- micro-batches in which nothing counts


def test_a_part_whose_labels_are_all_ignored_has_no_weight(scores: Tensor) -> None:
    labels = torch.tensor([0, 1, 2, -100, -100, -100, 4])
    assert parts_of(F.cross_entropy, scores, labels)[1].isnan()
    assert_merges(F.cross_entropy, scores, labels)


def test_a_batch_whose_labels_are_all_ignored_is_nan_as_on_one_card(scores: Tensor) -> None:
    labels = torch.full((ROWS,), -100)
    assert_merges(F.cross_entropy, scores, labels)


def test_infinity_in_one_part_is_not_dropped_as_nothing_would_be() -> None:
    """One loss per anchor over the number of boxes: a part without boxes still has a loss, and divides it by zero."""
    anchors = torch.rand(ROWS, 3, dtype=torch.float64)
    boxes = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(CannotMergeError, match="zero"):
        merge(parts_of(lambda x, n: x.sum() / n.sum(), anchors, boxes))


def test_infinity_is_not_hidden_by_another_term_that_is_not_a_number() -> None:
    anchors = torch.rand(ROWS, 3, dtype=torch.float64)
    boxes = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(CannotMergeError, match="zero"):
        merge(parts_of(lambda x, n: n.sum() / n.sum() + x.sum() / n.sum(), anchors, boxes))


def test_a_clamped_denominator_keeps_the_loss_of_parts_in_which_nothing_counts() -> None:
    anchors = torch.rand(ROWS, 3, dtype=torch.float64)
    boxes = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert_merges(lambda x, n: x.sum() / n.sum().clamp(min=1), anchors, boxes)


def test_a_clamp_that_holds_in_a_part_only() -> None:
    """The parts weigh 0.6, 0.3 and 0.1: each is clamped to one, the whole is not."""
    losses = torch.rand(ROWS, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64) * 1.5
    assert_merges(lambda x, w: (x * w).sum() / w.sum().clamp_min(1.0), losses, weights)


def test_a_clamp_that_holds_for_the_whole_batch() -> None:
    losses, nothing = torch.rand(ROWS, dtype=torch.float64), torch.zeros(ROWS, dtype=torch.float64)
    assert_merges(lambda x, w: (x * w).sum() / w.sum().clamp(1.0), losses, nothing)


# ---- hand-written means and sums


def test_masked_mean(scores: Tensor) -> None:
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert_merges(lambda x, m: (x.pow(2).mean(-1) * m).sum() / m.sum(), scores, mask)


def test_mean_of_the_rows_that_count(scores: Tensor, labels: Tensor) -> None:
    assert_merges(lambda x, y: x[y != -100].pow(2).mean(), scores, labels)


def test_means_and_sums(scores: Tensor) -> None:
    assert_merges(lambda x: x.pow(2).mean(), scores)
    assert_merges(lambda x: torch.mean(x.pow(2).mean(-1)), scores)
    assert_merges(lambda x: x.pow(2).sum(), scores)
    assert_merges(lambda x: -torch.sum(x.pow(2)).double() * 0.5, scores)


def test_a_count_stays_a_whole_number(scores: Tensor, labels: Tensor) -> None:
    count, _ = merge(parts_of(lambda x, y: (x.argmax(-1) == y).sum(), scores, labels))
    assert count.dtype == torch.int64
    assert count == (scores.argmax(-1) == labels).sum()


def test_losses_may_be_scaled_shifted_and_added(scores: Tensor, labels: Tensor) -> None:
    labels = labels.clamp(min=0)
    temperature = torch.tensor(1.5, dtype=torch.float64)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        total = 0.1 * F.cross_entropy(x, y) + F.cross_entropy(x.flip(-1), y) / temperature
        return total - x.pow(2).mean(-1).mean() * 0.01 + 3

    assert_merges(loss, scores, labels)


def test_pythons_sum_of_losses(scores: Tensor, labels: Tensor) -> None:
    assert_merges(lambda x, y: sum([F.cross_entropy(x, y), F.cross_entropy(-x, y)]), scores, labels)
    assert_merges(lambda x: sum([x.pow(2).sum(), x.abs().sum()]), scores)


def test_a_loss_may_be_gathered_in_a_fresh_zero(scores: Tensor, labels: Tensor) -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        total += F.cross_entropy(x, y)
        total += F.cross_entropy(-x, y)
        return total

    def summed(x: Tensor) -> Tensor:
        total = x.new_zeros(())
        return total + x.pow(2).sum()

    assert_merges(loss, scores, labels)
    assert_merges(summed, scores)


def test_a_loss_may_be_scaled_in_place(scores: Tensor, labels: Tensor) -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        total = F.cross_entropy(x, y)
        total /= 4
        total *= 3
        return total

    assert_merges(loss, scores, labels)


def test_a_detached_copy_of_a_loss_is_merged_like_the_loss(scores: Tensor, labels: Tensor) -> None:
    merged, _ = merge(parts_of(lambda x, y: F.cross_entropy(x, y).detach().float(), scores, labels))
    torch.testing.assert_close(merged, F.cross_entropy(scores, labels).float())


def test_a_learned_weight_between_losses(scores: Tensor, labels: Tensor) -> None:
    """Homoscedastic uncertainty (Kendall, Gal, Cipolla 2018): the learned scalar is a constant of the batch."""
    log_variance = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = lambda x, y: F.cross_entropy(x, y) * torch.exp(-log_variance) + log_variance  # noqa: E731
    assert_merges(loss, scores, labels)
    whole_gradient = log_variance.grad / 2  # assert_merges ran whole and parts
    log_variance.grad = None
    F.cross_entropy(scores, labels).mul(torch.exp(-log_variance)).add(log_variance).backward()
    torch.testing.assert_close(whole_gradient, log_variance.grad)


def test_the_original_of_a_constant_is_kept_when_it_is_changed_later(scores: Tensor) -> None:
    scale = torch.tensor(2.0, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return x.pow(2).mean() * scale.clone()

    assert_merges(loss, scores)


# ---- scalars that are not of the batch


def test_a_scalar_of_parameters_only_stays_untold() -> None:
    log_variance = nn.Parameter(torch.zeros(()))
    assert rule_of(watched(lambda: log_variance.exp() * 2 + 1)) is None
    assert rule_of(watched(lambda: torch.tensor(0.5))) is None


def test_tensors_are_told_nothing(scores: Tensor) -> None:
    assert rule_of(watched(lambda x: x.softmax(-1), scores)) is None
    assert rule_of(watched(lambda x: x.sum(-1), scores)) is None


# ---- what must be refused: each of these agrees with the whole batch on some batches, and is wrong on others


def test_a_learned_denominator_is_refused() -> None:
    """The value would merge exactly; the gradient of the denominator would not."""
    losses = torch.rand(ROWS, dtype=torch.float64)
    gates = torch.rand(ROWS, dtype=torch.float64, requires_grad=True)
    assert_refused(lambda x, w: (x * w).sum() / w.sum(), losses, gates)
    assert_refused(lambda x, w: (x * w).sum() / w.sum().clamp(min=1e-6), losses, gates)


def test_a_mean_over_what_the_parts_have_in_common_is_refused(scores: Tensor) -> None:
    """Averaged over samples first: parts of one size agree with the whole, parts of different sizes do not."""
    assert_refused(lambda x: x.mean(0).mean(), scores)
    assert_refused(lambda x: F.mse_loss(x.mean(0), torch.zeros(CLASSES, dtype=torch.float64)), scores)
    mask = torch.ones(ROWS, CLASSES, dtype=torch.float64)
    assert_refused(lambda x, m: ((x * m).sum(0) / m.sum(0)).mean(), scores, mask)


def test_a_loss_of_zero_in_the_first_batch_proves_nothing() -> None:
    """A head that starts at zero: any wrong merge of its loss gives zero as well."""
    zeros = torch.zeros(ROWS, 2, dtype=torch.float64)
    assert_refused(lambda x: x.sum() / len(x), zeros)
    assert_refused(lambda x: x.mean(0).sum(), zeros)
    assert_refused(lambda x: x.mean() * x.numel(), zeros)


def test_losses_put_into_one_tensor_are_refused(scores: Tensor, labels: Tensor) -> None:
    def filled(x: Tensor, y: Tensor) -> Tensor:
        losses = torch.zeros(2, dtype=torch.float64)
        losses[0] = F.cross_entropy(x, y)
        losses[1] = x.pow(2).mean()
        return losses.mean()

    assert_refused(filled, scores, labels)
    assert_refused(lambda x, y: torch.stack([F.cross_entropy(x, y), x.mean()]).mean(), scores, labels)
    assert_refused(lambda x, y: torch.stack([F.cross_entropy(x, y), x.mean()]).sum(), scores, labels)


def test_means_that_split_differently_are_refused(scores: Tensor, labels: Tensor) -> None:
    with pytest.raises(CannotMergeError, match="unevenly"):
        merge(parts_of(lambda x, y: F.cross_entropy(x, y) + x.pow(2).mean(), scores, labels))


def test_a_number_added_to_a_clamped_mean_is_refused_where_the_clamp_holds() -> None:
    losses, weights = torch.rand(ROWS, dtype=torch.float64), torch.full((ROWS,), 0.1, dtype=torch.float64)
    loss = lambda x, w: (x * w).sum() / w.sum().clamp(min=1) + 1  # noqa: E731
    with pytest.raises(CannotMergeError, match="clamped"):
        merge(parts_of(loss, losses, weights))
    assert_merges(loss, losses, weights * 100)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: F.cross_entropy(x, y) * int((y >= 0).sum()),
        lambda x, y: F.cross_entropy(x, y, reduction="sum") / (y >= 0).sum().item(),
        lambda x, y: F.cross_entropy(x, y) + x.max().item(),
        lambda x, y: F.cross_entropy(x, y) / y[0],
    ],
    ids=["times a count", "over a count", "plus a maximum", "over an element"],
)
def test_numbers_that_differ_between_the_parts_are_no_constants(loss: Loss, scores: Tensor, labels: Tensor) -> None:
    labels = labels.clone()
    labels[0] = 2
    with pytest.raises(CannotMergeError, match="differ between"):
        merge(parts_of(loss, scores, labels))


def test_a_scalar_that_was_made_unseen_is_no_constant_if_it_differs(scores: Tensor, labels: Tensor) -> None:
    """A compiled extension, NumPy, a scripted function: poolrt does not see how they made a scalar."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            unseen = x.pow(2).mean()
        return F.cross_entropy(x, y) + unseen

    with pytest.raises(CannotMergeError, match="differ between"):
        merge(parts_of(loss, scores, labels))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: x.pow(2).mean().sqrt(),
        lambda x: x.sum() ** 2,
        lambda x: x.max(),
        lambda x: x.std(),
        lambda x: x.median(),
        lambda x: x.logsumexp((0, 1)),
        lambda x: x[0, 0],
        lambda x: x.norm(),
        lambda x: 1 / x.pow(2).mean(),
        lambda x: x.mean() * x.mean(),
        lambda x: x.sum() + x.mean(),
        lambda x: x.sum() + 1.0,
        lambda x: x.abs().sum().clamp(max=1.0),
        lambda x: x.sum().clamp(min=0.0),
        lambda x: x.sum() / x.abs().sum().clamp(max=10.0),
        lambda x: x.sum() / (x.abs().sum() + 1e-8),
        lambda x: x.abs().sum().to(torch.int64),
        lambda x: torch.div(x.sum(), 3, rounding_mode="floor"),
        lambda x: torch.where(x.mean() > 0, x.mean(), 0.0),
        lambda x: (x - x.mean()).pow(2).mean(),
        lambda x: (x / x.sum()).pow(2).sum(),
        lambda x: torch.maximum(x.mean(), x.sum()),
        lambda x: x.topk(1, dim=0).values.mean() + x.mean(0).unbind()[0],
        lambda x: x.mean().exp_(),
        lambda x: torch.ops.aten.mean(x),
    ],
)
def test_anything_else_is_refused(loss: Loss, scores: Tensor) -> None:
    assert_refused(loss, scores)


def test_a_story_does_not_outlive_a_change_in_place(scores: Tensor) -> None:
    scalar = watched(lambda: torch.tensor(1.0))
    with Glue(Crossings(), lambda: None):
        scalar.add_(nn.Parameter(torch.ones(())).detach())
        total = scores.sum() * scalar
    assert [float(constant) for constant in rule_of(total).constants] == [2.0]


def test_sums_with_the_same_factor_merge_and_others_do_not() -> None:
    parts = [torch.tensor(1.0), torch.tensor(2.0)]
    for part, factor in zip(parts, (3.0, 3.0), strict=True):
        part._poolrt_merge_rule = Sum((factor,))
    assert merge(parts)[0] == 3.0
    parts[1]._poolrt_merge_rule = Sum((4.0,))
    with pytest.raises(CannotMergeError):
        merge(parts)
