"""Which of a model's layers can be split over cards: found without knowing the model, each one proven.

1  a module and the linear layer that reads its output: BERT's attention, intermediate -> output
2  modules that run on every card by themselves: attention, feed-forward, experts
3  torch's own nn.MultiheadAttention
4  linear layers written one after another in a module's code: fc2(act(fc1(x)))
5  what is large and left: an embedding by rows, logits and other linear layers by columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from poolrt.errors import ConfigurationError
from poolrt.runtime.regions.finding.capture import Captured, Run, capture, follow
from poolrt.runtime.regions.finding.forms import attention_of, embedding_of, inline_of, large_linear_of
from poolrt.runtime.regions.finding.hints import row_hints
from poolrt.runtime.regions.finding.noted import Attempt, Find, Noted
from poolrt.runtime.regions.finding.probe import Call, Chain, evaluated
from poolrt.runtime.regions.finding.search_region import Read, chain_of, fork_of
from poolrt.runtime.regions.finding.stand_in import FEW, has_weight, is_linear, with_fewer
from poolrt.runtime.regions.plan import RegionPlan, Rewrite, plan_of
from poolrt.runtime.regions.replica import parameter_of
from poolrt.runtime.state.model_state import state_restored
from poolrt.runtime.state.paths import contains

_MOST_MATRICES = 12
"""of a module that is tried as one region: attention with adapters has as many"""
LARGE = 0.05
"""of the model's parameters: a linear layer left over that has more is split by itself"""
_VOCABULARY = 0.2
"""of that: an embedding and logits are split from 1 percent. They have 1.5 to 7 of models of 3 to 20 billion

parameters: whole, the two of Phi 3 mini alone would be 5. And logits in parts spread the largest of all activations"""


def find_regions(
    model: nn.Module,
    run: Run,
    shares: Sequence[float],
    devices: Sequence[torch.device] | None = None,
    large: float = LARGE,
) -> RegionPlan:
    """How the layers of `model` are split over cards. The model, its buffers and all generators stay as they are.

    Args:
        model: any module; where its weights are does not matter.
        run: calls the model once. A small batch is enough; without a cache (use_cache=False).
        shares: for each card, in order, how much it should get relative to the others.
        devices: where a rewrite is proven; the host unless given.
        large: a linear layer that is in no region is split by itself if it has a greater part of the model's
            parameters than this, 0 to 1; an embedding and logits if they have a fifth of this.

    Raises:
        ConfigurationError: if there are fewer than two cards.
    """
    if len(shares) < 2 or any(share <= 0 for share in shares):
        raise ConfigurationError(f"layers are split over two cards or more, with positive shares; got {list(shares)}")
    places = tuple(devices) if devices is not None else (torch.device("cpu"),) * len(shares)
    with state_restored(model, places), evaluated(model):
        noted = Noted(model, places)
        _Search(noted, run, tuple(shares), capture(model, run)).everywhere(large)
    return plan_of(model, len(shares), tuple(noted.regions), noted.refused())


@dataclass
class _Search:
    noted: Noted
    run: Run
    shares: tuple[float, ...]
    captured: Captured

    def __post_init__(self) -> None:
        self._modules = dict(self.noted.model.named_modules())

    def everywhere(self, large: float) -> None:
        self._chains()
        self._forks()
        self._attentions()
        self._inline()
        self._large(large)

    def _chains(self) -> None:
        for row, columns in self.captured.readers.items():
            for column in sorted(columns, key=len):
                if self._may_be_chain(column, row):
                    module, reader = self._modules[column], self._modules[row]
                    self._consider(
                        Attempt(
                            kind="chain",
                            names=(column, row),
                            call=self.captured.calls[column],
                            find=self._chain(module, reader),
                            context=Chain(module, with_fewer(reader, FEW)),
                            inside=("column", "row"),
                        )
                    )

    def _may_be_chain(self, column: str, row: str) -> bool:
        """A linear layer that feeds another directly (an adapter's two) would take them from the layer around them."""
        module = self._modules[column]
        return not (is_linear(module) or contains(column, row)) and 1 <= _matrix_count(module) <= _MOST_MATRICES

    def _forks(self) -> None:
        """Modules with a few matrices, innermost first, then in the order of their calls."""
        few = [name for name in self.captured.calls if self._may_be_fork(self._modules[name])]
        for name in sorted(few, key=lambda name: -name.count(".") if name else 1):
            module = self._modules[name]
            hints = row_hints(self.noted.model, name, dict(module.named_parameters()))
            self._consider(
                Attempt(
                    kind="fork",
                    names=(name,),
                    call=self.captured.calls[name],
                    find=self._fork(module, hints),
                    context=module,
                )
            )

    def _may_be_fork(self, module: nn.Module) -> bool:
        lists = (nn.ModuleList, nn.ModuleDict)
        has_attention = any(isinstance(inner, nn.MultiheadAttention) for inner in module.modules())
        return 2 <= _matrix_count(module) <= _MOST_MATRICES and not has_attention and not isinstance(module, lists)

    def _attentions(self) -> None:
        for name, call in self.captured.calls.items():
            module = self._modules[name]
            if isinstance(module, nn.MultiheadAttention):
                find = self._heads(module)
                self._consider(Attempt(kind="attention", names=(name,), call=call, find=find, context=module))

    def _inline(self) -> None:
        free = [
            name
            for name in self.captured.calls
            if is_linear(self._modules[name])
            and self.noted.is_free(name)
            and "forward" not in self._modules[name].__dict__
        ]
        for row, columns in follow(self.noted.model, self.run, free, len(self.shares)).items():
            names = (*columns, row)
            parent = _common(names)
            if row not in columns and parent in self.captured.calls:
                self._consider(
                    Attempt(
                        kind="inline",
                        names=names,
                        call=self.captured.calls[parent],
                        find=self._linears([self._modules[name] for name in names]),
                        context=self._modules[parent],
                        inside=tuple(name.removeprefix(parent).removeprefix(".") for name in names),
                    )
                )

    def _large(self, large: float) -> None:
        least = large * sum(parameter.numel() for parameter in self.noted.model.parameters())
        tables = {name: module for name, module in self._modules.items() if isinstance(module, nn.Embedding)}
        vocabularies = {table.num_embeddings for table in tables.values()}
        for name, call in self.captured.calls.items():
            module = self._modules[name]
            if not (is_linear(module) or (name in tables and has_weight(module))):
                continue
            weight = parameter_of(module, "weight")
            if weight.numel() > least * (_VOCABULARY if weight.shape[0] in vocabularies else 1.0):
                self._consider(
                    Attempt(
                        kind="embedding" if name in tables else "columns",
                        names=(name,),
                        call=call,
                        find=self._layer(module),
                        context=None,
                    )
                )

    def _consider(self, attempt: Attempt) -> None:
        if all(map(self.noted.is_free, attempt.names)):
            self.noted.consider(attempt)

    # ---- how the forms are found

    def _chain(self, column: nn.Module, row: nn.Module) -> Find:
        def find(call: Call) -> tuple[Sequence[Rewrite], Read]:
            forked, row_linear, read = chain_of(column, row, call, self.shares)
            return (forked, row_linear), read

        return find

    def _fork(self, module: nn.Module, hints: Sequence[str]) -> Find:
        def find(call: Call) -> tuple[Sequence[Rewrite], Read]:
            forked, read = fork_of(module, call, self.shares, hints)
            return (forked,), read

        return find

    def _heads(self, module: nn.MultiheadAttention) -> Find:
        return lambda call: ((attention_of(module, self.shares),), ())

    def _linears(self, modules: Sequence[nn.Module]) -> Find:
        return lambda call: (inline_of(modules[:-1], modules[-1], self.shares), ())

    def _layer(self, module: nn.Module) -> Find:
        if isinstance(module, nn.Embedding):
            return lambda call: ((embedding_of(module, self.shares),), ())
        return lambda call: ((large_linear_of(module, self.shares),), ())


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
