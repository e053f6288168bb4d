"""What a step costs each card when layers themselves are split: one profile per card, made from that of one card.

    one card      | saved by regions ........ | saved by the rest |
    lead card     | its share of the regions  | saved by the rest |        everything that is not split is here
    other cards   | its share of the regions  | copies of what regions read |

A region is a module that all cards run together. Its weights lie in pieces, and what it keeps for backward follows
them. What it is given is copied to each card, what the cards made of it is added up on the lead card (Shoeybi et al.
2019, section 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from poolrt.errors import ConfigurationError
from poolrt.planning.limits import Limits
from poolrt.planning.memory import MemoryModel
from poolrt.planning.plan import CardPlan, Plan, PredictedBytes
from poolrt.planning.profile import CallFacts, LayerFacts, Profile, TiedParameter
from poolrt.topology.route import route
from poolrt.topology.topology import Topology
from poolrt.units import format_nbytes


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


@dataclass(frozen=True, kw_only=True)
class CardWeights:
    """One card's bytes of every layer of the profile."""

    layers: tuple[LayerFacts, ...]
    tied: tuple[TiedParameter, ...]


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """What was found out about a split model."""

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


def plan_split(facts: SplitFacts, topology: Topology, optimizer: str) -> Plan:
    """The plan of a split model; it may be infeasible.

    Raises:
        ConfigurationError: if planning does not know the optimizer.
    """
    predicted = [_predicted(facts, card, optimizer) for card in range(len(topology))]
    usable = Limits(optimizer=optimizer).usable_bytes(topology)
    too_full = [card for card, bytes_ in enumerate(predicted) if bytes_.total > usable[card]]
    step_s, busy_s = _seconds(facts, topology, trains=optimizer != "none")
    cards = tuple(
        CardPlan(
            index=card.index,
            layers=_grouped((*facts.modules, *(() if card.index else facts.rest))),
            predicted_bytes=predicted[card.index],
            capacity_bytes=card.memory_bytes,
            predicted_busy_s=busy_s[card.index],
        )
        for card in topology.cards
    )
    return Plan(
        model=facts.profile.model,
        topology=topology.fingerprint(),
        batch_size=facts.profile.batch_size,
        micro_batches=1,
        schedule="tensor-parallel",
        optimizer=optimizer,
        cards=cards,
        predicted_step_s=step_s,
        notes=facts.notes,
        feasible=not too_full,
        reason=_reason(topology, predicted, usable) if too_full else "",
        tensor_parallel=len(topology),
    )


def _grouped(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once; those that differ in a number alone stand together, as readers want to see them."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(re.sub(r"\d+", "", name), []).append(name)
    return tuple(name for group in groups.values() for name in group)


def check_cards(tensor_parallel: int, topology: Topology) -> None:
    """See that layers can be split so many ways over these cards.

    Raises:
        ConfigurationError: if not, with what to do.
    """
    if len(topology) < 2:
        raise ConfigurationError(
            f"tensor_parallel={tensor_parallel} splits layers over several cards, and there is {len(topology)}; leave "
            "it out, or give a topology of more cards"
        )
    if tensor_parallel != len(topology):
        raise ConfigurationError(
            f"tensor_parallel={tensor_parallel} over {len(topology)} cards: layers are split over all cards of the "
            f"topology; say tensor_parallel={len(topology)}, or give a topology of {tensor_parallel} cards "
            "(topology.subset)"
        )


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
    outputs = _scaled(one_card.output_nbytes, last, card) if last else (0 if card else one_card.output_nbytes)
    return replace(
        one_card,
        layers=facts.weights[card].layers,
        tied=facts.weights[card].tied,
        calls=calls,
        input_nbytes=0 if card else one_card.input_nbytes,
        gathered_nbytes=0,
        output_nbytes=outputs,
    )


def _predicted(facts: SplitFacts, card: int, optimizer: str) -> PredictedBytes:
    profile = profile_of_card(facts, card)
    return MemoryModel(profile, micro_batches=1, optimizer=optimizer).peak(range(len(profile.layers)), gathers=False)


def _call_of_card(call: CallFacts, regions: Sequence[RegionCall], card: int, is_last: bool) -> CallFacts:
    """One layer's call on one card."""
    shared = sum(region.saved_nbytes for region in regions)
    own = round(sum(region.shares[card] * region.saved_nbytes for region in regions))
    widest = max((region.copied_nbytes for region in regions), default=0)
    share = max((region.shares[card] for region in regions), default=0.0)
    parted = _parted_at_end(regions) if is_last else None
    glue_saved = _scaled(call.glue_saved_nbytes, parted, card) if parted else (0 if card else call.glue_saved_nbytes)
    glue_work = (
        _scaled(call.glue_workspace_nbytes, parted, card) if parted else (0 if card else call.glue_workspace_nbytes)
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


def _scaled(nbytes: int, region: RegionCall, card: int) -> int:
    return round(nbytes * region.shares[card])


def _seconds(facts: SplitFacts, topology: Topology, *, trains: bool) -> tuple[float, tuple[float, ...]]:
    """Seconds of a step, and of each card's work in it.

    Cards work on their shares at the same time, except that a virtual card computes in the thread that asks it to:
    in forward these take turns. What crosses takes the time of the slowest route.
    """
    passes = [("forward_s", 1.0)] + ([("backward_s", 0.0)] if trains else [])
    split_s = sum(region.forward_s for region in facts.calls)
    forward_s = sum(call.forward_s for call in facts.profile.calls)
    fraction = min(1.0, split_s / forward_s) if forward_s else 0.0
    shares = _mean_shares(facts, len(topology))
    in_turns = any(card.kind == "virtual" for card in topology.cards)
    step_s, busy = _crossing_s(facts, topology), [0.0] * len(topology)
    for name, turns in passes:
        whole_s = sum(getattr(call, name) for call in facts.profile.calls)
        own = [whole_s * (fraction * share + (0.0 if card else 1 - fraction)) for card, share in enumerate(shares)]
        busy = [total + mine for total, mine in zip(busy, own, strict=True)]
        longest = whole_s * (1 - fraction + fraction * max(shares, default=0.0))
        step_s += whole_s if in_turns and turns else longest
    return step_s, tuple(busy)


def _mean_shares(facts: SplitFacts, cards: int) -> list[float]:
    total = sum(region.forward_s for region in facts.calls)
    if not total:
        return [1 / cards] * cards
    return [sum(region.shares[card] * region.forward_s for region in facts.calls) / total for card in range(cards)]


def _crossing_s(facts: SplitFacts, topology: Topology) -> float:
    """What is copied to the cards and what comes back, there and back again in backward."""
    routes = [route(topology, 0, card) for card in range(1, len(topology))]
    nbytes = sum(region.copied_nbytes + (0 if region.in_parts else region.output_nbytes) for region in facts.calls)
    return 2 * max(way.copy_s(nbytes, 2 * len(facts.calls)) for way in routes)


def _reason(topology: Topology, predicted: Sequence[PredictedBytes], usable: Sequence[int]) -> str:
    """Which card cannot hold its part, what fills it, and what would make it fit."""
    over = [(bytes_.total - usable[card], card) for card, bytes_ in enumerate(predicted)]
    missing, worst = max(over)
    card, bytes_ = topology.cards[worst], predicted[worst]
    kinds = ", ".join(
        f"{kind} {format_nbytes(getattr(bytes_, kind))}"
        for kind in ("weights", "gradients", "optimizer", "activations", "workspace")
    )
    return (
        f"card {card.index} ({card.name}) has {format_nbytes(card.memory_bytes)} of which "
        f"{format_nbytes(usable[worst])} may be used, but would need {format_nbytes(bytes_.total)} with layers split "
        f"over {len(topology)} cards: {format_nbytes(missing)} too little. It would hold {kinds}. To make it fit: "
        f"{'; or '.join(_remedies(bytes_, missing))}."
    )


def _remedies(bytes_: PredictedBytes, missing: int) -> Iterable[str]:
    if bytes_.activations + bytes_.workspace > missing:
        yield "a smaller batch"
    if bytes_.optimizer > missing:
        yield 'an optimizer that keeps less (optimizer="sgd")'
    yield "more or larger cards"
    yield "leave tensor_parallel out: then optimizer state and weights may go to other cards and the host"
