"""Whether layers stay whole or are split, and over which cards: what `tensor_parallel="auto"` means.

    whole layers      a batch that can be cut keeps all cards at work, and only what layers hand on crosses links
    split layers      all cards work on one sample; everything that regions read and return crosses links

Layers are split where nothing else fits the cards, or where that is predicted to be clearly faster. To find out how a
model can be split takes seconds, so it is asked for only where it could win if every layer were split without a rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from poolrt.planning.groups import Grouping, groupings
from poolrt.planning.limits import Spill
from poolrt.planning.options import PlanOptions
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan, plan_stages
from poolrt.planning.profile import LayerFacts, Profile
from poolrt.planning.split_facts import CardWeights, RegionCall, SplitFacts
from poolrt.topology.topology import Topology
from poolrt.units import format_seconds

WORTH = 0.9
"""layers are split if a step is predicted to take no more than this part of that with whole layers"""

FactsOf = Callable[[tuple[int, ...]], SplitFacts | None]
"""facts_of(cards): how these cards would split the model, the same object for cards of equal shares; None if nothing
of it can be split"""


def choose_stages(
    profile: Profile,
    topology: Topology,
    facts_of: FactsOf,
    *,
    by_time: bool = True,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The plan of whole layers, or one whose layers are split over groups of cards where that is the better one.

    Layers are split if nothing fits with whole ones unless it spills, or if a step is predicted to take at most WORTH
    of one with whole layers. The plan's notes say what was compared.

    Args:
        profile: what was measured of the whole model.
        topology: the cards.
        facts_of: asked for groups of cards, the lead card first; a card with twice the memory of another has twice its
            share.
        by_time: False if the profile's seconds are not those of such cards: then memory alone decides, and layers that
            fit whole stay whole.
        options: what `make_plan` takes.

    Raises:
        ConfigurationError: if an argument makes no sense.
        PlanError: if the profile has no calls.
    """
    whole = make_plan(profile, topology, **options)
    fits = whole.feasible and not whole.spills
    if fits and not by_time:
        return whole
    limit_s = WORTH * whole.predicted_step_s if fits else float("inf")
    return _Choice(profile, topology, facts_of, options, whole, limit_s).plan()


class _Choice:
    """One comparison with a plan of whole layers; what was found is kept as half sentences."""

    def __init__(
        self,
        profile: Profile,
        topology: Topology,
        facts_of: FactsOf,
        options: PlanOptions,
        whole: Plan,
        limit_s: float,
    ) -> None:
        self._profile = profile
        self._topology = topology
        self._facts_of = facts_of
        self._options = options
        self._whole = whole
        self._limit_s = limit_s
        self._found: dict[Grouping, str] = {}

    def plan(self) -> Plan:
        """The better one, with a note."""
        hoped = {groups: self._hoped(groups) for groups in groupings(self._topology)}
        fastest_first = sorted(hoped, key=lambda groups: hoped[groups].predicted_step_s)
        chosen = self._fitting({groups: hoped[groups] for groups in fastest_first})
        if chosen is None and not self._whole.feasible:
            chosen = self._spilling(fastest_first)
        plan = chosen or self._whole
        return replace(plan, notes=(*plan.notes, *self._note(chosen)))

    def _fitting(self, hoped: Mapping[Grouping, Plan]) -> Plan | None:
        """The fastest plan that fits without a pool and is fast enough."""
        best, limit_s = None, self._limit_s
        for groups, at_best in hoped.items():
            if not at_best.feasible or at_best.predicted_step_s > limit_s:
                self._found[groups] = f"at best {_seconds_of(at_best)}"
                continue
            plan = self._split(groups, spill="never")
            self._found[groups] = _seconds_of(plan)
            if plan is not None and plan.feasible and plan.predicted_step_s <= limit_s:
                best, limit_s = plan, plan.predicted_step_s
        return best

    def _spilling(self, hopeful: Iterable[Grouping]) -> Plan | None:
        """The fastest plan that fits with the pool, where whole layers do not even then."""
        plans = [
            plan
            for groups in hopeful
            if (plan := self._split(groups, self._options.get("spill", "never"))) and plan.feasible
        ]
        best = min(plans, key=lambda plan: plan.predicted_step_s, default=None)
        if best is not None:
            self._found[best.stages] = _seconds_of(best)
        return best

    def _split(self, groups: Grouping, spill: Spill) -> Plan | None:
        """The plan with what is found out about the model; None if it cannot be split so."""
        facts = [self._facts_of(group) for group in groups]
        known = [found for found in facts if found is not None]
        return self._staged(known, groups, spill) if len(known) == len(facts) else None

    def _hoped(self, groups: Grouping) -> Plan:
        """The plan were every layer split without a rest."""
        unlike = {shares: without_rest(self._profile, shares) for shares in map(self._shares, groups)}
        return self._staged([unlike[self._shares(group)] for group in groups], groups, "never")

    def _staged(self, facts: Sequence[SplitFacts], groups: Grouping, spill: Spill) -> Plan:
        options: PlanOptions = {**self._options, "spill": spill}
        return plan_stages(facts, self._topology, groups, **options)

    def _shares(self, group: Sequence[int]) -> tuple[float, ...]:
        memory = [self._topology.cards[card].memory_bytes for card in group]
        return tuple(nbytes / sum(memory) for nbytes in memory)

    def _note(self, chosen: Plan | None) -> Iterator[str]:
        """What was compared, and with what result."""
        if not self._found:
            return
        spills = ", a part of it elsewhere" if self._whole.spills else ""
        others = [
            f"split over {_in_words(groups)} {found}"
            for groups, found in self._found.items()
            if chosen is None or groups != chosen.stages
        ]
        if chosen is not None:
            others.insert(0, f"whole layers {_seconds_of(self._whole)}{spills}")
            first = (
                f"Layers are split over {_in_words(chosen.stages)}: a step is predicted to take {_seconds_of(chosen)}"
            )
        elif self._whole.feasible:
            first = f"Layers stay whole: a step is predicted to take {_seconds_of(self._whole)}{spills}"
        else:
            first = "Layers fit neither whole nor split"
        yield f"{first}. Compared with: {'; '.join(others)}." if others else f"{first}."


def without_rest(profile: Profile, shares: tuple[float, ...]) -> SplitFacts:
    """Facts of a model of which everything is split: at least this much is read, returned and held.

    Args:
        profile: of the model on one card.
        shares: for each card.
    """
    reads = [profile.input_nbytes, *(call.output_nbytes for call in profile.calls[:-1])]
    regions = tuple(
        RegionCall(
            module=call.layer,
            call=index,
            shares=shares,
            forward_s=call.forward_s,
            copied_nbytes=read,
            saved_nbytes=call.saved_nbytes - call.glue_saved_nbytes,
            output_nbytes=call.output_nbytes,
            in_parts=index + 1 == len(profile.calls),
            operations=call.operations,
        )
        for index, (call, read) in enumerate(zip(profile.calls, reads, strict=True))
    )
    weights = tuple(
        CardWeights(
            layers=tuple(_part_of_layer(layer, share) for layer in profile.layers),
            tied=tuple(replace(tied, nbytes=int(share * tied.nbytes)) for tied in profile.tied),
        )
        for share in shares
    )
    names = tuple(layer.name for layer in profile.layers)
    return SplitFacts(profile=profile, calls=regions, weights=weights, modules=names, rest=())


def _part_of_layer(layer: LayerFacts, share: float) -> LayerFacts:
    return replace(
        layer,
        weight_nbytes=int(share * layer.weight_nbytes),
        trainable_nbytes=int(share * layer.trainable_nbytes),
        largest_gradient_nbytes=int(share * layer.largest_gradient_nbytes),
        trained_tensors=tuple(int(share * nbytes) for nbytes in layer.trained_tensors),
        frozen_tensors=tuple(int(share * nbytes) for nbytes in layer.frozen_tensors),
    )


def _seconds_of(plan: Plan | None) -> str:
    if plan is None:
        return "not possible: no layer of the model can be"
    return format_seconds(plan.predicted_step_s) if plan.feasible else "too large for the cards"


def _in_words(groups: Grouping) -> str:
    return " and ".join(f"cards {', '.join(map(str, group))}" for group in groups)
