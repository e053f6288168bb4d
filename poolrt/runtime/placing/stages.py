"""Stages of several cards: which regions of a model each of them splits.

    found for two cards   attention 0 .. 3, mlp 0 .. 3, embedding, head -> the embedding's weight
    stage 0, cards 0 1    embedding, attention 0 1, mlp 0 1
    stage 1, cards 2 3    attention 2 3, mlp 2 3, head: reads the pieces of stage 0, each copied to a card of stage 1

A parameter is split where its first layer is. A region of another stage that reads it too stays a region only if it
would split it in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.plan import Region, RegionPlan, parameter_splits, plan_of
from poolrt.runtime.regions.replica import parameter_of
from poolrt.runtime.state.layers import Layer
from poolrt.runtime.state.paths import contains


@dataclass(frozen=True)
class SplitStage:
    """Cards that run the same layers together, and what of these they split."""

    cards: tuple[int, ...]
    """the lead card first"""
    regions: RegionPlan
    splits: Mapping[str, Split] = field(default_factory=dict)
    """the model's name of each parameter that lies in pieces on these cards, and how"""


def deal_regions(
    model: nn.Module,
    layers: Sequence[Layer],
    card_of: Mapping[str, int],
    stages: Sequence[Sequence[int]],
    found: Sequence[RegionPlan | None],
) -> tuple[SplitStage, ...]:
    """What each stage of several cards splits.

    Args:
        model: whose parameters are whole still.
        layers: of the model.
        card_of: layer name to lead card.
        stages: cards of each stage, the lead card first.
        found: for each stage how its cards would split the whole model; None for one card.
    """
    dealing = _Dealing(model, layers, card_of, stages)
    for own in (True, False):
        for stage, plan in enumerate(found):
            if plan is not None:
                dealing.deal(stage, plan, own=own)
    return tuple(
        dealing.stage(stage, len(cards)) for stage, (cards, plan) in enumerate(zip(stages, found, strict=True)) if plan
    )


class _Dealing:
    """Regions to the stages that have their layers."""

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], card_of: Mapping[str, int], stages: Sequence[Sequence[int]]
    ) -> None:
        self._model, self._stages = model, stages
        leads = {cards[0]: stage for stage, cards in enumerate(stages)}
        self._layers = {layer.name: leads[card_of[layer.name]] for layer in layers}
        self._home = self._homes(layers)
        self._split: dict[int, Split] = {}
        self._dealt: list[list[Region]] = [[] for _ in stages]

    def _homes(self, layers: Sequence[Layer]) -> dict[int, int]:
        """By id of a parameter, the stage of the first layer that uses it; what no layer uses is the first stage's."""
        homes: dict[int, int] = {}
        for layer in layers:
            for parameter in layer.module.parameters():
                homes.setdefault(id(parameter), self._layers[layer.name])
        first = self._layers[layers[0].name] if layers else 0
        return {id(parameter): homes.get(id(parameter), first) for parameter in self._model.parameters()}

    def deal(self, stage: int, plan: RegionPlan, *, own: bool) -> None:
        """Give the stage those of the regions that it can run: with all parameters its own, or those with others'."""
        for region in plan.regions:
            splits = dict(_splits(self._model, region))
            is_own = all(self._home[key] == stage for key in splits)
            if is_own is own and self._is_within(region, stage) and (own or self._agrees(splits, stage)):
                self._dealt[stage].append(region)
                self._split.update({key: split for key, split in splits.items() if self._home[key] == stage})

    def _is_within(self, region: Region, stage: int) -> bool:
        """Whether one layer of the stage has all of the region in it; a single stage has everything."""
        names = [name for name, where in self._layers.items() if where == stage]
        modules = [rewrite.module for rewrite in region.rewrites]
        return len(self._stages) == 1 or any(all(contains(name, module) for module in modules) for name in names)

    def _agrees(self, splits: Mapping[int, Split], stage: int) -> bool:
        return all(self._home[key] == stage or self._split.get(key) == split for key, split in splits.items())

    def stage(self, stage: int, cards: int) -> SplitStage:
        """What the stage has been given."""
        regions = plan_of(self._model, cards, tuple(self._dealt[stage]), ())
        home = {name: self._home[id(parameter)] for name, parameter in self._model.named_parameters()}
        own = {name: split for name, split in regions.splits.items() if home[name] == stage}
        return SplitStage(tuple(self._stages[stage]), regions, own)


def _splits(model: nn.Module, region: Region) -> Iterator[tuple[int, Split]]:
    for rewrite in region.rewrites:
        module = model.get_submodule(rewrite.module)
        for name, split in parameter_splits(rewrite).items():
            yield id(parameter_of(module, name)), split
