"""What was found in a model so far: regions proven, modules taken, reasons why others stay whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.alike import are_alike, are_called_alike
from poolrt.runtime.regions.finding.dealing import NotSplittableError
from poolrt.runtime.regions.finding.forms import columns_of
from poolrt.runtime.regions.finding.probe import Call
from poolrt.runtime.regions.finding.search_region import Read
from poolrt.runtime.regions.finding.stand_in import FEW, with_fewer
from poolrt.runtime.regions.finding.verify import difference
from poolrt.runtime.regions.plan import Kind, Refusal, Region, Rewrite, SplitEmbedding, parameter_splits
from poolrt.runtime.regions.replica import parameter_of
from poolrt.runtime.state.paths import contains

Find = Callable[[Call], tuple[Sequence[Rewrite], Read]]
"""from one call: the rewrites of the region's modules in order, and the numbers that its code reads"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Modules that may be a region."""

    kind: Kind
    names: tuple[str, ...]
    """the model's names of the modules"""
    call: Call
    """of what is called to prove the rewrites"""
    find: Find
    context: nn.Module | None
    """what is called to prove them; None for one layer of a known class, for which a small one stands in"""
    inside: tuple[str, ...] = ("",)
    """the names of the modules in it"""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What came of an attempt."""

    modules: tuple[nn.Module, ...]
    call: Call
    read: Read = ()
    rewrites: tuple[Rewrite, ...] = ()
    """of these modules, in order"""
    why_not: str | None = None


@dataclass
class Noted:
    """The state of a search in one model."""

    model: nn.Module
    devices: Sequence[torch.device]
    """where rewrites are proven"""
    regions: list[Region] = field(default_factory=list)
    _known: list[_Known] = field(default_factory=list)
    _problems: dict[tuple[str, ...], str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _split: dict[int, Split] = field(default_factory=dict)
    """of parameters, by identity: one that is used in two places is split in one way"""

    def is_free(self, name: str) -> bool:
        """Whether neither the module, nor one in it or around it, is part of a region."""
        return not any(contains(name, taken) or contains(taken, name) for taken in self._taken)

    def consider(self, attempt: Attempt) -> None:
        """Find and prove a region, or note why it is none; equal ones are found and proven once."""
        modules = tuple(self.model.get_submodule(name) for name in attempt.names)
        known = self._recalled(modules, attempt.call)
        if known is None:
            known = self._tried(modules, attempt)
            self._known.append(known)
        problem = known.why_not or self._conflict(modules, known.rewrites)
        if problem:
            self._problems.setdefault(attempt.names, problem)
            return
        rewrites = [replace(rewrite, module=name) for rewrite, name in zip(known.rewrites, attempt.names, strict=True)]
        self.regions.append(Region(name=" -> ".join(attempt.names), kind=attempt.kind, rewrites=tuple(rewrites)))
        self._taken.update(attempt.names)

    def refused(self) -> tuple[Refusal, ...]:
        """Modules that were looked at in vain, the innermost of each, with the reason."""
        left = {names[0]: reason for names, reason in self._problems.items() if all(map(self.is_free, names))}
        return tuple(
            Refusal(name=name or type(self.model).__name__, reason=reason)
            for name, reason in left.items()
            if not any(other != name and contains(name, other) for other in left)
        )

    def _recalled(self, modules: tuple[nn.Module, ...], call: Call) -> _Known | None:
        for known in self._known:
            if len(known.modules) == len(modules) and are_called_alike(known.call, call):
                reads = (known.read, *((),) * (len(modules) - 1))
                if all(map(are_alike, known.modules, modules, reads)):
                    return known
        return None

    def _tried(self, modules: tuple[nn.Module, ...], attempt: Attempt) -> _Known:
        try:
            rewrites, read = attempt.find(attempt.call)
        except (NotSplittableError, ConfigurationError) as problem:
            return _Known(modules=modules, call=attempt.call, why_not=str(problem))
        named = [replace(rewrite, module=name) for rewrite, name in zip(rewrites, attempt.inside, strict=True)]
        context, call = attempt.context, attempt.call
        if context is None:
            context, call, named = _stand_in(modules[0], call, named[0])
        wrong = difference(context, call, named, self.devices)
        why_not = wrong and f"split, {wrong}"
        return _Known(modules=modules, call=attempt.call, read=read, rewrites=tuple(rewrites), why_not=why_not)

    def _conflict(self, modules: tuple[nn.Module, ...], rewrites: Sequence[Rewrite]) -> str | None:
        """Why a parameter that is used elsewhere too cannot be split in this way; else it is noted as split so."""
        wanted = {
            id(parameter_of(module, name)): (name, split)
            for module, rewrite in zip(modules, rewrites, strict=True)
            for name, split in parameter_splits(rewrite).items()
        }
        for key, (name, split) in wanted.items():
            if self._split.get(key, split) != split:
                return f"{name} is used by another layer too, which is split in another way"
        self._split.update({key: split for key, (_, split) in wanted.items()})
        return None


def _stand_in(module: nn.Module, call: Call, rewrite: Rewrite) -> tuple[nn.Module, Call, list[Rewrite]]:
    """A copy of a large layer with a few outputs or rows on each card, a call of it, and its rewrite.

    A proof holds several copies of the weight; of a layer of one known class a small one proves as much.
    """
    counts = [min(FEW, size) for size in parameter_splits(rewrite)["weight"].piece_sizes]
    small = with_fewer(module, sum(counts))
    if isinstance(rewrite, SplitEmbedding):
        ids = torch.arange(sum(counts)).reshape(1, -1)
        return small, ((ids,), {}), [SplitEmbedding(module="", split=Split.from_counts(counts))]
    return small, call, [columns_of(small, counts)]
