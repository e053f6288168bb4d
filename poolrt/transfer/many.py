"""Many copies at once: small ones between the same two cards travel together.

    a |--|      b |-|     c |---|                 on the source card, gathered into
    [--|-|---]  ------------------>  [--|-|---]   one copy over the link
    a |--|      b |-|     c |---|                 on the target card, scattered

Within one card, and between GPUs that reach each other, one launch does without the gathering.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from poolrt.transfer import by_kernel
from poolrt.transfer.copy import carry, copy
from poolrt.transfer.form import as_bytes, check_pair
from poolrt.transfer.routes import current
from poolrt.transfer.streams import runs_beside

SMALL_NBYTES = 64 << 10
"""up to this size a copy costs its fixed part rather than its bytes"""


def copy_many(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """`copy(source, target)` for every pair, as if one after another; no target may be the source of a later pair.

    Raises:
        ConfigurationError: as `copy`; pairs before the one it speaks of may have been copied.
    """
    small: dict[tuple[torch.device, torch.device], list[tuple[Tensor, Tensor]]] = {}
    for source, target in pairs:
        flat = _packable(source, target)
        if flat is None:
            copy(source, target)
        else:
            small.setdefault((source.device, target.device), []).append(flat)
    for together in small.values():
        _copy_together(together)


def _packable(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as flat bytes, where it serves to copy them together with others."""
    within_a_card = source.device == target.device and source.device.type != "cpu"
    if target.nbytes > SMALL_NBYTES or not (within_a_card or runs_beside(source.device, target.device)):
        return None
    if torch.is_grad_enabled() and (source.requires_grad or target.requires_grad):
        return None
    check_pair(source, target)
    return as_bytes(source, target)


def _copy_together(pairs: list[tuple[Tensor, Tensor]]) -> None:
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    origin, home = sources[0].device, targets[0].device
    kind = current().between(origin, home, sum(target.nbytes for target in targets))
    if len(pairs) == 1:
        carry(*pairs[0])
    elif kind != "HOST" and by_kernel.many_copied(pairs):
        return
    elif origin == home:
        torch._foreach_copy_(targets, sources)
    else:
        packed = torch.cat(sources)
        landed = torch.empty_like(packed, device=home)
        carry(packed, landed)
        torch._foreach_copy_(targets, landed.split([target.nbytes for target in targets]))
