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

from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic


def parted_cross_entropy(
    parts: Sequence[Tensor],
    target: Tensor,
    lead: torch.device,
    traffic: Traffic = UNCOUNTED,
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
    with traffic.exchange([lead, *(part.device for part in parts[1:])]) as exchange:
        targets = exchange.fork(target)
        exchange.land(0)
        target = targets[0]
        counted = target != ignore_index
        classes = sum(part.shape[-1] for part in parts)
        _check_targets((target >= 0) & (target < classes) | ~counted, target, classes)
        shift = torch.stack(exchange.gather([part.detach().amax(-1) for part in parts])).amax(0)
        shifts, exponentials, wanted, offset = exchange.fork(shift), [], [], 0
        for card, part in enumerate(parts):
            exchange.land(card)
            exponentials.append(exchange.leave(card, (part - shifts[card].unsqueeze(-1)).exp().sum(-1)))
            wanted.append(exchange.leave(card, _of_target(part, targets[card] - offset)))
            offset += part.shape[-1]
        log_sum = exchange.join(exponentials).log() + shift
        losses = log_sum - exchange.join(wanted)
        if label_smoothing:
            mean = exchange.join([part.sum(-1) for part in parts]) / classes
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
