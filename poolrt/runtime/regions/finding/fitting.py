"""Have each card's replica give its part: the numbers its Python reads, and how the cards' outputs come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.attributes import Attribute, Fractions, search, watched
from poolrt.runtime.regions.finding.cache_heads import cache_split_of
from poolrt.runtime.regions.finding.dealing import Dealing, NotSplittableError
from poolrt.runtime.regions.finding.dropouts import dropout_of_the_sum, drops_of
from poolrt.runtime.regions.finding.needs import Needs
from poolrt.runtime.regions.finding.probe import Call, RegionProbe, differs
from poolrt.runtime.regions.plan import AttributeChange, CacheSplit, Forked, InputSplit, Joining
from poolrt.runtime.regions.replica import put_attribute, put_buffers, put_parameters
from poolrt.runtime.regions.running.forked import index_of, replica_for, sliced
from poolrt.runtime.state.trees import Tree, flatten

Setting = dict[Attribute, tuple[int, ...]]
"""values by card"""

HOST = torch.device("cpu")


class Fitting:
    """One module and the pieces that were found for it."""

    def __init__(self, needs: Needs, dealing: Dealing, granules: Sequence[int]) -> None:
        self.probe, self.dealing = needs.probe, dealing
        self.cards = len(dealing.ranges)
        self._fractions = _fractions(needs.size, dealing, granules)
        self._group_sizes = _group_sizes(needs.size, dealing, granules)
        self._rewrite = Forked(
            module="",
            splits=dealing.splits,
            lead=dealing.lead,
            inputs=tuple(InputSplit(path=path, split=split) for path, split in dealing.inputs.items()),
        )
        self._changed: set[Attribute] = set()
        self._replicas = [self._replica(card) for card in range(self.cards)]
        with torch.no_grad():
            self._expected = [self._part(needs, card) for card in range(self.cards)]

    def fit(self) -> tuple[Forked, tuple[Attribute, ...]]:
        """The rewrite with its numbers and its joining, and all numbers that the code reads.

        Raises:
            NotSplittableError: if no setting reproduces the region.
        """
        with torch.no_grad():
            with watched(self.probe.module) as attributes:
                whole = self.probe.run()
            found = search(attributes, self._fractions, self.cards, self._attempt)
            if isinstance(found, str):
                raise NotSplittableError(found)
            found = self._with_group_sizes(found, attributes)
            self._set(found)
            outputs = [self.output(card) for card in range(self.cards)]
            dropout = self._dropout_of_the_sum()
            cache = self._cache_split()
        changes = tuple(
            AttributeChange(path=a.path, in_config=a.in_config, name=a.name, values=values)
            for a, values in found.items()
        )
        joined = joinings(whole, outputs, self.probe.tolerance)
        found_rewrite = replace(self._rewrite, attributes=changes, outputs=joined, dropout_after=dropout, cache=cache)
        return found_rewrite, tuple(attributes)

    def output(self, card: int) -> Tree:
        """What a card's replica makes of the probed call."""
        args, kwargs = self.call_on(card)
        return flatten(self._replicas[card](*args, **kwargs))

    def call_on(self, card: int, call: Call | None = None) -> Any:
        """A call, the probed one if no other is given, as a card reads it."""
        parts = {part.path: part for part in self._rewrite.inputs}
        tree = flatten(self.probe.call if call is None else call)

        def read(path: str, tensor: Tensor) -> Tensor:
            part = parts.get(path)
            return tensor if part is None else tensor.index_select(part.split.dim, index_of(part, tensor, card))

        return tree.rebuild(read(leaf.path, leaf.tensor) for leaf in tree.leaves)

    def _replica(self, card: int) -> nn.Module:
        weights = self.probe.parameters
        by_id = {id(parameter): name for name, parameter in self.probe.module.named_parameters()}

        def pieces(parameter: Tensor) -> Sequence[Tensor]:
            name = by_id[id(parameter)]
            return [sliced(weights[name].detach(), self.dealing.splits[name], each) for each in range(self.cards)]

        replica = replica_for(self.probe.module, self._rewrite, card, [HOST] * self.cards, pieces)
        _put_lead(replica, self.probe, self.dealing.lead, card)
        return replica

    def _part(self, needs: Needs, card: int) -> Tensor:
        """The card's share of the first output: the whole region with the card's part of the row weight alone."""
        replaced = {needs.row.name: needs.masked(self.dealing.ranges[card])}
        if card:
            replaced |= {name: torch.zeros_like(self.probe.parameters[name]) for name in self.dealing.lead}
        return self.probe.first(replaced)

    def _attempt(self, setting: dict[Attribute, tuple[int, ...]]) -> str | None:
        self._set(setting)
        for card in range(self.cards):
            try:
                tensors = self.output(card).tensors
            except Exception as error:  # whatever the region's Python raises with numbers that do not fit
                return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            if not tensors or differs(self._expected[card], tensors[0], self.probe.tolerance):
                return f"card {card} gave another output"
        return None

    def _dropout_of_the_sum(self) -> str | None:
        with drops_of(self.probe.module) as whole:
            output = self.probe.run()
        cards = []
        for card, replica in enumerate(self._replicas):
            with drops_of(replica) as drops:
                self.output(card)
            cards.append(drops)
        return dropout_of_the_sum(whole, output, cards, self.probe.tolerance)

    def _cache_split(self) -> CacheSplit | None:
        def on_card(card: int) -> Callable[[Call], object]:
            def run(call: Call) -> object:
                args, kwargs = self.call_on(card, call)
                return self._replicas[card](*args, **kwargs)

            return run

        runs = [on_card(card) for card in range(self.cards)]
        return cache_split_of(self.probe.call, self.probe.run_call, runs, self.probe.tolerance)

    def _with_group_sizes(self, found: Setting, attributes: Sequence[Attribute]) -> Setting:
        """Also change numbers that say how many heads share keys and values, where the code does not object.

        Attention kernels that know groups do not need it; others repeat keys and values so many times.
        """
        for attribute in attributes:
            values = self._group_sizes.get(attribute.value)
            if attribute not in found and values is not None and self._attempt({**found, attribute: values}) is None:
                found = {**found, attribute: values}
        return found

    def _set(self, setting: dict[Attribute, tuple[int, ...]]) -> None:
        for attribute in self._changed - setting.keys():
            self._put(attribute, (attribute.value,) * self.cards)
        for attribute, values in setting.items():
            self._put(attribute, values)
        self._changed = set(setting)

    def _put(self, attribute: Attribute, values: Sequence[int]) -> None:
        for replica, value in zip(self._replicas, values, strict=True):
            put_attribute(replica, attribute.path, attribute.in_config, attribute.name, value)


def _put_lead(replica: nn.Module, probe: RegionProbe, lead: Sequence[str], card: int) -> None:
    put_parameters(
        replica,
        {
            name: probe.parameters[name].detach() if card == 0 else torch.zeros_like(probe.parameters[name])
            for name in lead
        },
    )
    put_buffers(replica, probe.buffers)


def _group_sizes(size: int, dealing: Dealing, granules: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """How many fine granules are in a coarse one -> the same for what each card has of them, where that differs.

    Where all cards hold the same keys and values, all heads are one group: the coarsest granule is everything.
    """
    found = {}
    for fine, coarse in combinations((*granules, size) if _has_common(dealing) else granules, 2):
        if coarse % fine == 0 and coarse // fine > 1:
            values = tuple(
                (stop - start) // fine // (-(-stop // coarse) - start // coarse) for start, stop in dealing.ranges
            )
            if set(values) != {coarse // fine} and min(values) >= 1:
                found[coarse // fine] = values
    return found


def _has_common(dealing: Dealing) -> bool:
    """Whether some part of a weight is on every card."""
    return any(
        set.intersection(*(set(split.indices(card)) for card in range(split.cards)))
        for split in dealing.splits.values()
        if not split.is_disjoint
    )


def _fractions(size: int, dealing: Dealing, granules: Sequence[int]) -> list[Fractions]:
    """What part of something each card has: of the row weight, of each weight, of the groups at each level."""
    found: dict[Fractions, None] = {}
    for split in (Split.from_counts([b - a for a, b in dealing.ranges]), *dealing.splits.values()):
        found[tuple(Fraction(piece, split.size) for piece in split.piece_sizes)] = None
    for granule in granules:
        touched = [-(-stop // granule) - start // granule for start, stop in dealing.ranges]
        found[tuple(Fraction(count * granule, size) for count in touched)] = None
    whole = (Fraction(1),) * len(dealing.ranges)
    return [fraction for fraction in found if fraction != whole]


def joinings(whole: Tree, outputs: Sequence[Tree], tolerance: float) -> tuple[Joining, ...]:
    """How each tensor of the output comes from the cards' ones.

    Raises:
        NotSplittableError: if one does not.
    """
    return tuple(
        _joining(leaf.path, leaf.tensor, [_tensor_at(output, place) for output in outputs], tolerance)
        for place, leaf in enumerate(whole.leaves)
    )


def _tensor_at(output: Tree, place: int) -> Tensor:
    if place >= len(output.leaves):
        raise NotSplittableError("a card's copy of it returns fewer tensors than it does")
    return output.leaves[place].tensor


def _joining(path: str, whole: Tensor, parts: Sequence[Tensor], tolerance: float) -> Joining:
    alike = all(part.shape == whole.shape for part in parts)
    if alike and all(not differs(whole, part, tolerance) for part in parts):
        return "same"
    if alike and whole.is_floating_point() and not differs(whole, torch.stack(list(parts)).sum(0), tolerance):
        return "sum"
    for dim in range(whole.dim()):
        sizes = sum(part.shape[dim] if part.dim() == whole.dim() else -1 for part in parts)
        others = all(
            part.shape[:dim] == whole.shape[:dim] and part.shape[dim + 1 :] == whole.shape[dim + 1 :] for part in parts
        )
        if others and sizes == whole.shape[dim] and not differs(whole, torch.cat(list(parts), dim), tolerance):
            return dim
    raise NotSplittableError(f"its output {path or 'tensor'} cannot be put together from the cards' ones")
