"""What is to be rewritten, and what stays whole and why: values that decide nothing by themselves.

    Region "encoder.layer.0.attention"      what a reader of the plan sees
      Forked(module="...self", ...)           its rewrites: which module's forward changes, and how
      RowLinear(module="...output.dense")

A rewrite names parameters as the model does, `splits` says which part of each is on which card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.replica import parameter_of

Joining = Literal["sum", "same", "parts"] | int
"""how one output comes together from the cards: added up; alike on all, so the first one's; left in parts of its last

dimension for the module that reads it; or put together along a dimension"""


@dataclass(frozen=True, kw_only=True)
class AttributeChange:
    """A number that the region's Python reads, and its value on each card: heads, sizes to split by."""

    path: str
    """of the module inside the region"""
    in_config: bool
    """the module's config holds it, not the module"""
    name: str
    values: tuple[int, ...]
    """by card"""


@dataclass(frozen=True, kw_only=True)
class InputSplit:
    """An argument of which each card reads a part: a bias per head, say.

    The split is of one period; a dimension of several periods (samples times heads) repeats it.
    """

    path: str
    """of the tensor in (args, kwargs)"""
    split: Split


@dataclass(frozen=True, kw_only=True)
class CacheSplit:
    """How the keys and values that a region puts into a cache are dealt out; None where every card has all."""

    argument: str
    """where the region takes the cache: the path in (args, kwargs)"""
    keys: Split | None
    values: Split | None


@dataclass(frozen=True, kw_only=True)
class Forked:
    """Every card runs the module's own Python on its pieces."""

    module: str
    splits: Mapping[str, Split]
    """parameter, named from the module, to its split; all that are not on the lead card alone"""
    lead: tuple[str, ...] = ()
    """parameters that are applied once, on the lead card: the bias after a row-split weight"""
    attributes: tuple[AttributeChange, ...] = ()
    inputs: tuple[InputSplit, ...] = ()
    outputs: tuple[Joining, ...] = ("sum",)
    """for each tensor of the output"""
    dropout_after: str | None = None
    """a dropout of the region that works on the joined output: it drops from the sum, once"""
    cache: CacheSplit | None = None
    """None if the region takes no cache, or puts into it what is not understood"""


@dataclass(frozen=True, kw_only=True)
class RowLinear:
    """A linear layer whose input lies in parts, or is cut into such; the cards' products are added up."""

    module: str
    split: Split
    """of the weight; the bias stays on the lead card"""


@dataclass(frozen=True, kw_only=True)
class SplitEmbedding:
    """Each card looks up the ids of its own rows; the rest counts as zero."""

    module: str
    split: Split
    """of the weight: dimension 0"""


@dataclass(frozen=True, kw_only=True)
class SplitAttention:
    """torch's own nn.MultiheadAttention with some heads on each card."""

    module: str
    splits: Mapping[str, Split]
    heads: tuple[int, ...]
    """by card"""


Kind = Literal["chain", "fork", "attention", "inline", "embedding", "columns"]
"""the form: a module and the linear layer that reads it, a module by itself, torch's own attention, linear layers in a

module's code, an embedding by rows, a linear layer by columns"""

Rewrite = Forked | RowLinear | SplitEmbedding | SplitAttention


@dataclass(frozen=True, kw_only=True)
class Region:
    """Modules that are split across the cards together."""

    name: str
    kind: Kind
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A module that stays whole."""

    name: str
    reason: str

    def __str__(self) -> str:
        return _whole([self.name], self.reason)


@dataclass(frozen=True, kw_only=True)
class RegionPlan:
    """How a model's layers are split over the cards."""

    cards: int
    regions: tuple[Region, ...] = ()
    refused: tuple[Refusal, ...] = ()
    split_share: float = 0.0
    """of the model's parameters, how many lie in pieces: 0 to 1"""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """the model's name of each parameter that lies in pieces, and how; tied ones under their first name"""

    def explain(self) -> list[str]:
        """Sentences for the plan's notes."""
        lines = [
            f"{len(self.regions)} regions are split over {self.cards} cards: "
            f"{self.split_share:.0%} of the parameters lie in pieces"
        ]
        names: dict[str, list[str]] = {}
        for refusal in self.refused:
            names.setdefault(refusal.reason, []).append(refusal.name)
        return lines + [_whole(alike, reason) for reason, alike in names.items()]

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers, for `plan --json`."""
        return {
            "cards": self.cards,
            "split_share": self.split_share,
            "regions": [
                {"name": region.name, "kind": region.kind, "modules": [rewrite.module for rewrite in region.rewrites]}
                for region in self.regions
            ],
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "refused": [{"name": refusal.name, "reason": refusal.reason} for refusal in self.refused],
        }


def _whole(names: list[str], reason: str) -> str:
    if len(names) == 1:
        return f"{names[0]} stays whole: {reason}"
    others = f"{len(names) - 1} other" + ("s" if len(names) > 2 else "")
    return f"{names[0]} and {others} ({names[-1]} the last) stay whole: {reason}"


def parameter_splits(rewrite: Rewrite) -> dict[str, Split]:
    """The splits of a rewrite's parameters, named from its module; what every card holds whole is among them."""
    if isinstance(rewrite, (RowLinear, SplitEmbedding)):
        return {"weight": rewrite.split}
    return dict(rewrite.splits)


def plan_of(model: nn.Module, cards: int, regions: tuple[Region, ...], refused: tuple[Refusal, ...]) -> RegionPlan:
    """The plan with its sums: which parameters of `model` lie in pieces."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    splits: dict[str, Split] = {}
    for region in regions:
        for rewrite in region.rewrites:
            module = model.get_submodule(rewrite.module)
            for name, split in parameter_splits(rewrite).items():
                splits[names[id(parameter_of(module, name))]] = split
    cut = sum(sizes[name] for name, split in splits.items() if not split.is_whole)
    share = cut / max(1, sum(sizes.values()))
    return RegionPlan(cards=cards, regions=regions, refused=refused, split_share=share, splits=splits)
