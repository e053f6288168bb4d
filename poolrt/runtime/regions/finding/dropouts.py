"""Where a region drops entries, and whether its cards may each do it by themselves.

    of a card's own part   heads, hidden units         each card drops its own, as one card would drop all: fine
    of the sum             dropout(o_proj(h))          once, after the cards' shares are added
    of what all share      dropout(x) before q, k, v   the cards would drop differently: refused

Found by watching: a dropout's inputs on the cards are parts of its input in the whole region, sum to it, or equal it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.regions.finding.dealing import NotSplittableError
from poolrt.runtime.regions.finding.probe import differs
from poolrt.runtime.state.no_dropout import NoDropout
from poolrt.runtime.state.trees import Tree


@dataclass(frozen=True)
class Drop:
    """One call of a dropout."""

    module: str | None
    """the dropout module's name; None where the code calls the function"""
    rate: float
    tensor: Tensor


_DROPS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}


class _Drops(NoDropout):
    """Notes every dropout and drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Drop] = []
        self.module: str | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DROPS:
            given = kwargs or {}
            rate = args[1] if len(args) > 1 else given.get("p", 0.5)
            self.calls.append(Drop(self.module, float(rate), args[0] if args else given["input"]))
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def drops_of(module: nn.Module) -> Iterator[list[Drop]]:
    """The dropouts that run while this is open, with `module` in training; they drop nothing."""
    noted = _Drops()
    modes = [(inner, inner.training) for inner in module.modules()]
    with ExitStack() as stack:
        for name, inner in module.named_modules():
            if isinstance(inner, nn.modules.dropout._DropoutNd):
                stack.enter_context(_named(inner, name, noted))
        try:
            for inner, _ in modes:
                inner.training = True
            with noted:
                yield noted.calls
        finally:
            for inner, mode in modes:
                inner.training = mode


@contextmanager
def _named(module: nn.Module, name: str, noted: _Drops) -> Iterator[None]:
    def enter(*_: Any) -> None:
        noted.module = name

    def leave(*_: Any) -> None:
        noted.module = None

    handles = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dropout_of_the_sum(
    whole: Sequence[Drop], output: Tree, cards: Sequence[Sequence[Drop]], tolerance: float
) -> str | None:
    """The dropout module that works on the sum of the cards' outputs; None if there is none.

    Args:
        whole: the dropouts of the whole region, in order.
        output: of the whole region in the same run.
        cards: for each card the dropouts of its replica.
        tolerance: for comparing.

    Raises:
        NotSplittableError: if cards would drop differently from what they share.
    """
    if any(len(drops) != len(whole) for drops in cards):
        raise NotSplittableError("its parts call dropout in other places than it does")
    found = None
    for place, drop in enumerate(whole):
        parts = [drops[place].tensor for drops in cards]
        if any(part.shape != drop.tensor.shape for part in parts):
            continue
        shared = all(not differs(drop.tensor, part, tolerance) for part in parts)
        added = not differs(drop.tensor, torch.stack(parts).sum(0), tolerance)
        once = [other.module for other in whole].count(drop.module) == 1
        if added and not shared and drop.module and once and output.tensors[0] is drop.tensor:
            found = drop.module
        elif drop.rate and (shared or added):
            raise NotSplittableError(
                f"{drop.module or 'its code'} drops entries of what all cards share, and each would drop others"
            )
    return found
