"""What was found out about a model whose layers can be split, and from it one profile for each card of a stage.

    one card      | saved by regions ........ | saved by the rest |
    lead card     | its share of the regions  | saved by the rest |        everything that is not split is here
    other cards   | its share of the regions  | copies of what regions read |

A region is a module that all cards run together. Its weights lie in pieces, and what it keeps for backward follows
them. What it is given is copied to each card, what the cards made of it is added up on the lead card (Shoeybi et al.
2019, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from poolrt.planning.profile import CallFacts, LayerFacts, Profile, TiedParameter


@dataclass(frozen=True, kw_only=True)
class RegionCall:
    """One call of a split module, as it is on one card, for the whole probed batch."""

    module: str
    call: int
    """position in the profile's calls: the layer of which it is part"""
    shares: tuple[float, ...]
    """for each card, what part of it that card does"""
    forward_s: float
    copied_nbytes: int
    """what it is given whole: every card but the lead card makes a copy"""
    saved_nbytes: int
    """kept for backward and spread like the weights; what it only reads is not counted"""
    output_nbytes: int
    """of what it returns: each card makes as much, unless it stays in parts"""
    in_parts: bool = False
    """whether the result stays where it was made; what follows works on the parts"""
    operations: int = 0
    """how many operators its forward starts; 0 where that was not counted"""


@dataclass(frozen=True, kw_only=True)
class CardWeights:
    """One card's bytes of every layer of the profile."""

    layers: tuple[LayerFacts, ...]
    tied: tuple[TiedParameter, ...]


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """What was found out about a model that several cards run together, or one card alone."""

    profile: Profile
    """of the model as it is on one card"""
    calls: tuple[RegionCall, ...]
    weights: tuple[CardWeights, ...]
    """by card"""
    modules: tuple[str, ...]
    """names of those that are split, in order"""
    rest: tuple[str, ...]
    """names of the modules on the lead card whose parameters are whole"""
    notes: tuple[str, ...] = ()

    @classmethod
    def whole(cls, profile: Profile) -> SplitFacts:
        """Facts of one card that runs whole layers."""
        weights = CardWeights(layers=profile.layers, tied=profile.tied)
        return cls(profile=profile, calls=(), weights=(weights,), modules=(), rest=())

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """For each card the model's profile as that card runs it; see `profile_of_card`."""
        if len(self.weights) == 1:
            return (self.profile,)
        return tuple(profile_of_card(self, card) for card in range(len(self.weights)))

    def scaled(self, batch_size: int) -> SplitFacts:
        """The facts of a batch of `batch_size` samples, by proportion: what depends on the batch grows with it."""
        ratio = batch_size / self.profile.batch_size
        regions = tuple(_scaled_region(region, ratio) for region in self.calls)
        return replace(self, profile=self.profile.scaled(batch_size), calls=regions)


def profile_of_card(facts: SplitFacts, card: int) -> Profile:
    """The model's profile as `card` runs it: its weights, its share of the regions; on the lead card the rest too."""
    by_call: dict[int, list[RegionCall]] = {}
    for region in facts.calls:
        by_call.setdefault(region.call, []).append(region)
    one_card = facts.profile
    calls = tuple(
        _call_of_card(call, by_call.get(index, []), card, index + 1 == len(one_card.calls))
        for index, call in enumerate(one_card.calls)
    )
    last = _parted_at_end(by_call.get(len(one_card.calls) - 1, []))
    outputs = _share_of(one_card.output_nbytes, last, card) if last else (0 if card else one_card.output_nbytes)
    return replace(
        one_card,
        layers=facts.weights[card].layers,
        tied=facts.weights[card].tied,
        calls=calls,
        input_nbytes=0 if card else one_card.input_nbytes,
        gathered_nbytes=0 if card else one_card.gathered_nbytes,
        output_nbytes=outputs,
    )


def _call_of_card(call: CallFacts, regions: Sequence[RegionCall], card: int, is_last: bool) -> CallFacts:
    """One layer's call on one card."""
    shared = sum(region.saved_nbytes for region in regions)
    own = round(sum(region.shares[card] * region.saved_nbytes for region in regions))
    widest = max((region.copied_nbytes for region in regions), default=0)
    share = max((region.shares[card] for region in regions), default=0.0)
    parted = _parted_at_end(regions) if is_last else None
    glue_saved, glue_work = (
        _share_of(nbytes, parted, card) if parted else (0 if card else nbytes)
        for nbytes in (call.glue_saved_nbytes, call.glue_workspace_nbytes)
    )
    work = [
        round(share * nbytes) + widest for nbytes in (call.forward_workspace_nbytes, call.backward_workspace_nbytes)
    ]
    if card:
        copies = sum(region.copied_nbytes for region in regions)
        return replace(
            call,
            saved_nbytes=own + copies + glue_saved,
            forward_workspace_nbytes=work[0] if regions else 0,
            backward_workspace_nbytes=work[1] if regions else 0,
            output_nbytes=0,
            glue_saved_nbytes=glue_saved,
            glue_workspace_nbytes=glue_work,
        )
    return replace(
        call,
        saved_nbytes=call.saved_nbytes - shared + own - call.glue_saved_nbytes + glue_saved,
        forward_workspace_nbytes=work[0] if regions else call.forward_workspace_nbytes,
        backward_workspace_nbytes=work[1] if regions else call.backward_workspace_nbytes,
        glue_saved_nbytes=glue_saved,
        glue_workspace_nbytes=glue_work,
    )


def _parted_at_end(regions: Sequence[RegionCall]) -> RegionCall | None:
    """The last region if its result stays in parts: what the model makes of it then does too, a loss of logits say."""
    return regions[-1] if regions and regions[-1].in_parts else None


def _share_of(nbytes: int, region: RegionCall, card: int) -> int:
    return round(nbytes * region.shares[card])


def _scaled_region(region: RegionCall, ratio: float) -> RegionCall:
    return replace(
        region,
        forward_s=region.forward_s * ratio,
        copied_nbytes=round(region.copied_nbytes * ratio),
        saved_nbytes=round(region.saved_nbytes * ratio),
        output_nbytes=round(region.output_nbytes * ratio),
    )
