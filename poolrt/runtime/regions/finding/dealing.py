"""From what each card's part of the row weight needs to a split of every weight and input of the region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poolrt.planning.split import Range, Split
from poolrt.runtime.regions.finding.needs import Need, Needs, RowWeight

_DRAWS = 4
"""random weights that are tried: a unit that an activation silences shows in another draw"""
_MOST = 0.8
"""a split by which the average card still needs more of the weights is none"""


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """The pieces of a region."""

    row: RowWeight
    ranges: tuple[Range, ...]
    """of the row weight, by card"""
    splits: dict[str, Split]
    """of every weight, those that all cards need whole among them, except `lead`"""
    lead: tuple[str, ...]
    """weights that come after the row weight: applied once, on the lead card"""
    inputs: dict[str, Split]
    """of the arguments of which a card reads a part, by path; one period of each"""
    share: float
    """of the region's weights, what the average card holds"""


class NotSplittableError(Exception):
    """Why this row weight does not split the region; the message is a sentence's second half."""


def check_promising(needs: Needs) -> None:
    """Have a look at the smallest part before all cuts are tried.

    Raises:
        NotSplittableError: if even that needs nearly all of the weights.
    """
    one, weights = needs.of((0, 1)), needs.probe.parameters
    sizes = {name: weight.numel() for name, weight in weights.items() if weight.dim() > 1 and name != needs.row.name}
    needed = sum(
        sizes[name] * min(float(used.float().mean()) for used in need)
        for name in sizes
        if (need := one[name]) is not None
    )
    if needed > _MOST * (sum(sizes.values()) + needs.masked((0, 1)).numel()):
        raise NotSplittableError(f"even one part of {needs.row.name} needs nearly all of its weights")


def deal(needs: Needs, ranges: tuple[Range, ...]) -> Dealing:
    """Find what each card needs for its range of the row weight.

    Raises:
        NotSplittableError: if the region adds something past the row weight, or its parts need nearly everything.
    """
    lead = _after_the_row(needs)
    by_card = _needs_by_card(needs, ranges)
    row = Split.from_counts([stop - start for start, stop in ranges], needs.row.dim)
    splits = {needs.row.name: row}
    weights = [name for name in needs.probe.parameters if name != needs.row.name and name not in lead]
    for name in sorted(weights, key=lambda name: needs.probe.parameters[name].dim() < 2):  # matrices first
        weight = needs.probe.parameters[name]
        splits[name] = _split_of(name, weight, [need[name] for need in by_card], splits)
    inputs = {
        path: _one_period(split)
        for path, tensor in needs.probe.inputs.items()
        if (split := _partial(tensor, [need[f"input {path}"] for need in by_card])) is not None
    }
    share = _share(needs, splits)
    if share > _MOST and len(ranges) > 1:
        raise NotSplittableError(what_spans(needs, splits) or f"every card would need {share:.0%} of its weights")
    return Dealing(row=needs.row, ranges=ranges, splits=splits, lead=lead, inputs=inputs, share=share)


def _after_the_row(needs: Needs) -> tuple[str, ...]:
    past = needs.of_nothing()
    if any(name.startswith("input ") and need is not None for name, need in past.items()):
        raise NotSplittableError("it adds to its output something that is no part of a sum, its input perhaps")
    lead = tuple(name for name, need in past.items() if need is not None)
    for name in lead:
        if needs.probe.parameters[name].dim() > 1:
            raise NotSplittableError(f"{name} is used past {needs.row.name}")
    return lead


def _needs_by_card(needs: Needs, ranges: Sequence[Range]) -> list[Need]:
    """What each card needs, in any of several draws of the weights; more draws only while something is never needed."""
    found = [needs.of(keep) for keep in ranges]
    for _ in range(_DRAWS - 1):
        if not _has_holes(found):
            break
        needs.probe.redraw()
        found = [_union(before, needs.of(keep)) for before, keep in zip(found, ranges, strict=True)]
    return found


def _union(a: Need, b: Need) -> Need:
    merged: Need = {}
    for name, mine in a.items():
        theirs = b[name]
        merged[name] = (
            theirs if mine is None else mine if theirs is None else [x | y for x, y in zip(mine, theirs, strict=True)]
        )
    return merged


def _has_holes(needs: Sequence[Need]) -> bool:
    """Whether an index of a dimension of some tensor was needed by no card."""
    for name in needs[0]:
        known = [need[name] for need in needs]
        present = [need for need in known if need is not None]
        if present and any(not bool(torch.stack(used).any(0).all()) for used in zip(*present, strict=True)):
            return True
    return False


def _split_of(name: str, weight: Tensor, needed: Sequence[list[Tensor] | None], known: dict[str, Split]) -> Split:
    cards = len(needed)
    if weight.dim() == 1:
        like_sibling = _as_sibling(name, weight, needed, known)
        if like_sibling is not None:
            return like_sibling
    if all(need is None for need in needed):
        raise NotSplittableError(f"{name} takes no part in it, so that its share cannot be found")
    return _partial(weight, needed) or Split.whole(weight.shape[0], cards)


def _as_sibling(
    name: str, weight: Tensor, needed: Sequence[list[Tensor] | None], known: dict[str, Split]
) -> Split | None:
    """The split of the matrix beside a bias. Gradients agree, or are blind: softmax does not see a bias of the keys."""
    module = name.rpartition(".")[0]
    for sibling, split in known.items():
        if sibling.rpartition(".")[0] == module and split.size == weight.shape[0] and not split.is_whole:
            allowed = [set(split.indices(card)) for card in range(split.cards)]
            if all(need is None or set(_indices(need[0])) <= allowed[card] for card, need in enumerate(needed)):
                return Split(dim=0, pieces=split.pieces, replicated=split.replicated)
    return None


def _partial(tensor: Tensor, needed: Sequence[list[Tensor] | None]) -> Split | None:
    """The split along the dimension of which the cards need least; None if every card needs all of each."""
    best: Split | None = None
    if any(need is None for need in needed):
        return None
    for dim in range(tensor.dim()):
        used = [need[dim] for need in needed if need is not None]
        covered = bool(torch.stack(used).any(0).all())
        if covered and all(bool(x.any()) for x in used) and any(not bool(x.all()) for x in used):
            split = Split.from_indices([_indices(x) for x in used], dim)
            if best is None or sum(split.piece_sizes) / split.size < sum(best.piece_sizes) / best.size:
                best = split
    return best


def _one_period(split: Split) -> Split:
    """The shortest pattern that the split repeats: samples times heads have one of the heads."""
    holders = [tuple(card for card in range(split.cards) if _holds(split, card, index)) for index in range(split.size)]
    period = next(
        length
        for length in range(1, split.size + 1)
        if split.size % length == 0 and holders == holders[:length] * (split.size // length)
    )
    indices = [[index for index in range(period) if card in holders[index]] for card in range(split.cards)]
    return Split.from_indices(indices, split.dim)


def _holds(split: Split, card: int, index: int) -> bool:
    return any(start <= index < stop for start, stop in split.pieces[card])


def _share(needs: Needs, splits: dict[str, Split]) -> float:
    sizes = {name: weight.numel() for name, weight in needs.probe.parameters.items() if weight.dim() > 1}
    held = sum(
        sizes[name] * sum(split.piece_sizes) / split.size / split.cards
        for name, split in splits.items()
        if name in sizes
    )
    return held / sum(sizes.values())


def what_spans(needs: Needs, splits: dict[str, Split]) -> str:
    """A sentence that names layers without a matrix that tie rows together which would be on several cards; or ""."""
    whole = [name for name, split in splits.items() if split.is_whole and needs.probe.parameters[name].dim() > 1]
    with_matrix = {name.rpartition(".")[0] for name, weight in needs.probe.parameters.items() if weight.dim() > 1}
    binding = [
        module
        for name, split in splits.items()
        if not split.is_whole and (module := name.rpartition(".")[0]) not in with_matrix
    ]
    if not binding or not whole:
        return ""
    names = " and ".join(dict.fromkeys(binding))
    return f"{names} would work across cards: every card would need all of {', '.join(whole)}"


def _indices(used: Tensor) -> list[int]:
    return [int(index) for index in used.nonzero().flatten()]
