"""Which of a model's layers can be split over cards: found without knowing the model, each one proven.

    1  a module and the linear layer that reads its output: BERT's attention, intermediate -> output
    2  modules that run on every card by themselves: attention, feed-forward, experts
    3  torch's own nn.MultiheadAttention
    4  linear layers written one after another in a module's code: fc2(act(fc1(x)))
    5  what is large and left: an embedding by rows, logits and other linear layers by columns

Equal layers are found and proven once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import nn

from poolrt.errors import ConfigurationError
from poolrt.planning.split import Split
from poolrt.runtime.model_state import state_restored
from poolrt.runtime.regions.alike import are_alike, are_called_alike
from poolrt.runtime.regions.capture import Captured, Run, capture, follow
from poolrt.runtime.regions.dealing import NotSplittableError
from poolrt.runtime.regions.forms import attention_of, columns_of, embedding_of, inline_of, large_linear_of
from poolrt.runtime.regions.hints import row_hints
from poolrt.runtime.regions.plan import Refusal, Region, RegionPlan, Rewrite, SplitEmbedding, parameter_splits, plan_of
from poolrt.runtime.regions.probe import Call, Chain, evaluated
from poolrt.runtime.regions.search_region import Read, chain_of, fork_of
from poolrt.runtime.regions.stand_in import FEW, is_linear, with_fewer
from poolrt.runtime.regions.verify import difference
from poolrt.runtime.regions.replica import parameter_of

_MOST_MATRICES = 5
"""of a module that is tried as one region; a whole transformer layer has more, and never is one"""
_LARGE = 0.05
"""of the model's parameters: an embedding or a linear layer left over that has more is split by itself"""


Find = Callable[[Call], tuple[Sequence[Rewrite], Read]]
"""from one call: the rewrites of the region's modules in order, and the numbers that its code reads"""


def find_regions(
    model: nn.Module, run: Run, shares: Sequence[float], devices: Sequence[torch.device] | None = None
) -> RegionPlan:
    """How the layers of `model` are split over cards. The model, its buffers and all generators stay as they are.

    Args:
        model: any module; where its weights are does not matter.
        run: calls the model once. A small batch is enough; without a cache (use_cache=False).
        shares: for each card, in order, how much it should get relative to the others.
        devices: where a rewrite is proven; the host unless given.

    Raises:
        ConfigurationError: if there are fewer than two cards.
    """
    if len(shares) < 2 or any(share <= 0 for share in shares):
        raise ConfigurationError(f"layers are split over two cards or more, with positive shares; got {list(shares)}")
    places = tuple(devices) if devices is not None else (torch.device("cpu"),) * len(shares)
    with state_restored(model, places), evaluated(model):
        finder = _Finder(model, run, tuple(shares), places)
        finder.find()
    return plan_of(model, len(shares), tuple(finder.regions), finder.refused())


@dataclass
class _Known:
    """A region that was found and proven, or refused."""

    modules: tuple[nn.Module, ...]
    call: Call
    read: Read
    rewrites: tuple[Rewrite, ...] = ()
    """of these modules, in order"""
    why_not: str | None = None


@dataclass
class _Finder:
    model: nn.Module
    run: Run
    shares: tuple[float, ...]
    devices: tuple[torch.device, ...]
    regions: list[Region] = field(default_factory=list)
    _known: list[_Known] = field(default_factory=list)
    _problems: dict[tuple[str, ...], str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _split: dict[int, Split] = field(default_factory=dict)
    """of parameters, by identity: one that is used in two places is split in one way"""

    def find(self) -> None:
        self._modules = dict(self.model.named_modules())
        self._captured: Captured = capture(self.model, self.run)
        self._find_chains()
        self._find_forks()
        self._find_attentions()
        self._find_inline()
        self._find_large()

    def refused(self) -> tuple[Refusal, ...]:
        """Modules that were looked at in vain, the innermost of each, with the reason."""
        left = {names[0]: reason for names, reason in self._problems.items() if all(map(self._is_free, names))}
        return tuple(
            Refusal(name=name or type(self.model).__name__, reason=reason)
            for name, reason in left.items()
            if not any(other != name and _contains(name, other) for other in left)
        )

    # ---- the forms

    def _find_chains(self) -> None:
        for row, columns in self._captured.readers.items():
            for column in sorted(columns, key=len):
                module, reader = self._modules[column], self._modules[row]
                usable = self._is_free(row) and self._is_free(column) and not _contains(column, row)
                if usable and not is_linear(module) and 1 <= _matrix_count(module) <= _MOST_MATRICES:

                    def find(call: Call, m: nn.Module = module, r: nn.Module = reader) -> tuple[list[Rewrite], Read]:
                        forked, row_linear, read = chain_of(m, r, call, self.shares)
                        return [forked, row_linear], read

                    context = Chain(module, with_fewer(reader, FEW))
                    self._consider((column, row), find, context, ("column", "row"))

    def _find_forks(self) -> None:
        for name in self._candidates():
            module = self._modules[name]
            if self._is_free(name) and not any(isinstance(inner, nn.MultiheadAttention) for inner in module.modules()):
                hints = row_hints(self.model, name, dict(module.named_parameters()))
                self._consider(
                    (name,), lambda call, m=module, h=hints: _as_found(fork_of(m, call, self.shares, h)), module
                )

    def _candidates(self) -> list[str]:
        """Modules with a few matrices, innermost first, then in the order of their calls."""
        few = [
            name
            for name in self._captured.calls
            if 2 <= _matrix_count(self._modules[name]) <= _MOST_MATRICES and not _is_list(self._modules[name])
        ]
        return sorted(few, key=lambda name: -name.count(".") if name else 1)

    def _find_attentions(self) -> None:
        for name, module in self._modules.items():
            if isinstance(module, nn.MultiheadAttention) and name in self._captured.calls and self._is_free(name):
                self._consider(
                    (name,), lambda call, m=module: ([attention_of(m, self.shares)], ()), module
                )

    def _find_inline(self) -> None:
        free = [
            name
            for name in self._captured.calls
            if is_linear(self._modules[name]) and self._is_free(name) and "forward" not in self._modules[name].__dict__
        ]
        for row, columns in follow(self.model, self.run, free, len(self.shares)).items():
            names = (*columns, row)
            parent = _common(names)
            if row in columns or parent not in self._captured.calls or not all(map(self._is_free, names)):
                continue
            linears = [self._modules[name] for name in names]
            self._consider(
                names,
                lambda call, found=linears: (inline_of(found[:-1], found[-1], self.shares), ()),
                self._modules[parent],
                tuple(name.removeprefix(parent).removeprefix(".") for name in names),
                parent,
            )

    def _find_large(self) -> None:
        total = sum(parameter.numel() for parameter in self.model.parameters())
        for name, module in self._modules.items():
            is_table = isinstance(module, nn.Embedding)
            if not (is_table or is_linear(module)) or name not in self._captured.calls or not self._is_free(name):
                continue
            weight = parameter_of(module, "weight")
            if weight.numel() < _LARGE * total or "forward" in module.__dict__:
                continue
            found = embedding_of if is_table else large_linear_of
            self._consider((name,), lambda call, m=module, f=found: ([f(cast(nn.Embedding, m), self.shares)], ()), None)

    # ---- one region

    def _consider(
        self,
        names: tuple[str, ...],
        find: Find,
        context: nn.Module | None,
        inside: tuple[str, ...] = ("",),
        caller: str | None = None,
    ) -> None:
        """Find, prove and note a region of the modules `names`, or why there is none.

        Args:
            names: the model's names of the modules.
            find: call -> (rewrites of the modules in order, numbers that their code reads).
            context: what is called to prove the rewrites; None for one layer, cut down to a few rows.
            inside: the names of the modules in it.
            caller: the model's name of what is called; the first module unless given.
        """
        call = self._captured.calls[names[0] if caller is None else caller]
        modules = tuple(self._modules[name] for name in names)
        known = self._recalled(modules, call)
        if known is None:
            known = self._found(modules, call, find, context, inside)
            self._known.append(known)
        problem = known.why_not or self._conflict(modules, known.rewrites)
        if problem:
            self._problems.setdefault(names, problem)
            return
        rewrites = [replace(rewrite, module=name) for rewrite, name in zip(known.rewrites, names, strict=True)]
        self.regions.append(Region(name=" -> ".join(names), kind=type(rewrites[0]).__name__, rewrites=tuple(rewrites)))
        self._taken.update(names)

    def _recalled(self, modules: tuple[nn.Module, ...], call: Call) -> _Known | None:
        for known in self._known:
            if len(known.modules) == len(modules) and are_called_alike(known.call, call):
                reads = (known.read, *((),) * (len(modules) - 1))
                if all(map(are_alike, known.modules, modules, reads)):
                    return known
        return None

    def _found(
        self, modules: tuple[nn.Module, ...], call: Call, find: Find, context: nn.Module | None, inside: tuple[str, ...]
    ) -> _Known:
        try:
            rewrites, read = find(call)
        except (NotSplittableError, ConfigurationError) as problem:
            return _Known(modules, call, (), why_not=str(problem))
        named = [replace(rewrite, module=name) for rewrite, name in zip(rewrites, inside, strict=True)]
        if context is None:
            context, call_, named = _stand_in(modules[0], call, named[0])
        else:
            call_ = call
        wrong = difference(context, call_, named, self.devices)
        return _Known(modules, call, read, tuple(rewrites), why_not=wrong and f"split, {wrong}")

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

    def _is_free(self, name: str) -> bool:
        return not any(_contains(name, taken) or _contains(taken, name) for taken in self._taken)


def _as_found(found: tuple[Rewrite, Read]) -> tuple[Sequence[Rewrite], Read]:
    return [found[0]], found[1]


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


def _contains(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _common(names: Sequence[str]) -> str:
    """The module that has all of these in it."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _matrix_count(module: nn.Module) -> int:
    return sum(parameter.dim() > 1 for parameter in module.parameters())


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))
