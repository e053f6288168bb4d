"""Cross-entropy over classes that lie in parts on several cards; only two numbers per row travel.

    loss of a row  =  log sum_j exp(x_j)  -  x_target

    card c:  sum of exp(x_j - m) over its classes, and x_target if it is one of its own          m: the row's largest
    lead:    adds both over the cards

As in Megatron-LM (Shoeybi et al. 2019, section 3): the logits are never in one place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def parted_cross_entropy(
    parts: Sequence[Tensor],
    target: Tensor,
    lead: torch.device,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`F.cross_entropy` of [rows, classes] whose classes lie in `parts`; the result is on `lead`.

    Sums are in fp32 at least, as in torch's own kernel; under autocast the result is in fp32 too.

    Raises:
        IndexError: if a target is no class; on a GPU the device's own assertion comes later.
    """
    given = parts[0].dtype
    if given in (torch.float16, torch.bfloat16):
        parts = [part.float() for part in parts]
    target = target.to(lead)
    counted = target != ignore_index
    classes = sum(part.shape[-1] for part in parts)
    _check_targets((target >= 0) & (target < classes) | ~counted, target, classes)
    shift = torch.stack([part.detach().amax(-1).to(lead) for part in parts]).amax(0)
    exponentials, wanted, offset = shift.new_zeros(()), shift.new_zeros(()), 0
    for part in parts:
        exponentials = exponentials + (part - shift.to(part.device).unsqueeze(-1)).exp().sum(-1).to(lead)
        wanted = wanted + _of_target(part, target.to(part.device) - offset).to(lead)
        offset += part.shape[-1]
    log_sum = exponentials.log() + shift
    losses = log_sum - wanted
    if label_smoothing:
        mean = sum((part.sum(-1).to(lead) for part in parts), start=shift.new_zeros(())) / classes
        losses = (1 - label_smoothing) * losses + label_smoothing * (log_sum - mean)
    result = _reduced(torch.where(counted, losses, 0), counted, reduction)
    return result if torch.is_autocast_enabled(lead.type) else result.to(given)


def _of_target(part: Tensor, target: Tensor) -> Tensor:
    """The target's logit where it is one of this part's classes, else 0."""
    mine = (target >= 0) & (target < part.shape[-1])
    found = part.gather(-1, torch.where(mine, target, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(mine, found, 0)


def _reduced(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum()


def _check_targets(fine: Tensor, target: Tensor, classes: int) -> None:
    if target.device.type == "cuda":  # without waiting for the card
        torch._assert_async(fine.all(), f"a target is none of the {classes} classes")
    elif not bool(fine.all()):
        raise IndexError(f"target {int(target[~fine][0])} is none of the {classes} classes 0 to {classes - 1}")
