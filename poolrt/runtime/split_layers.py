"""What is known of splitting one model's layers: looked at when asked for, and for each set of shares once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from poolrt.errors import ModelError, PlanError
from poolrt.planning.choose import choose_stages
from poolrt.planning.limits import OutputCard
from poolrt.planning.options import PlanOptions
from poolrt.planning.plan import Plan
from poolrt.planning.planner import make_plan, plan_stages
from poolrt.planning.split_facts import SplitFacts
from poolrt.runtime.batches.microbatch import Call
from poolrt.runtime.decide import Options, planning_options
from poolrt.runtime.measuring.measure import Measured
from poolrt.runtime.measuring.tensor_parallel_find import regions_of
from poolrt.runtime.measuring.tensor_parallel_profile import split_facts
from poolrt.runtime.placing.stages import SplitStage, deal_regions
from poolrt.runtime.regions.plan import Refusal, Region, RegionPlan, plan_of
from poolrt.runtime.state.layers import Layer
from poolrt.runtime.state.paths import contains
from poolrt.topology.topology import Topology

Shares = tuple[float, ...]
FoundOn = Callable[[], AbstractContextManager[None]]


class SplitLayers:
    """One model, one batch, and stages of cards that are to run layers together.

    Args:
        model: whole, on whatever device; its forward is its own.
        call: one batch.
        measured: with that batch.
        topology: the cards; they need not be there.
        options: what the user asked for.
        devices: of the cards, to prove rewrites there; on the host unless given.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        measured: Measured,
        topology: Topology,
        options: Options,
        devices: Sequence[torch.device] | None = None,
    ) -> None:
        self._model, self._call, self._measured = model, call, measured
        self._topology, self._options, self._devices = topology, options, devices
        self._regions: dict[Shares, RegionPlan] = {}
        self._facts: dict[Shares, SplitFacts] = {}

    def best(self, output_card: OutputCard, found_on: FoundOn, why_not_split: str = "") -> Plan:
        """The best plan as the user asked for it: of split layers, of whole ones, or of the better of these.

        Args:
            output_card: where whole outputs are put together.
            found_on: holds the model whole and bare while it is found out how it can be split.
            why_not_split: why the batch stays whole, half a sentence.

        Returns:
            A plan; it may be infeasible.

        Raises:
            ModelError: if split layers were asked for, and nothing of the model can be split.
        """
        options = planning_options(self._options, output_card, why_not_split)
        if self._options.may_split:
            return self._chosen(found_on, options)
        if self._options.stages:
            return self._staged(options)
        return make_plan(self._measured.profile, self._topology, **options)

    def _staged(self, options: PlanOptions) -> Plan:
        stages = self._options.stages
        if options["micro_batches"] == "auto" and len(stages) == 1:
            options["micro_batches"] = 1
        plan = plan_stages([self.facts(cards) for cards in stages], self._topology, stages, **options)
        return replace(plan, notes=(*plan.notes, *_notes_on_shares(self._topology)))

    def _chosen(self, found_on: FoundOn, options: PlanOptions) -> Plan:
        def facts_of(cards: tuple[int, ...]) -> SplitFacts | None:
            try:
                with found_on():
                    return self.facts(cards)
            except ModelError:
                return None

        by_time = seconds_are_of_cards(self._model, self._topology)
        return choose_stages(self._measured.profile, self._topology, facts_of, by_time=by_time, **options)

    def checked(self, plan: Plan) -> Plan:
        """A plan made earlier, after seeing that its stages can split what it says they do.

        Raises:
            PlanError: if they cannot.
        """
        found = set().union(*(self._modules(plan, cards) for cards in plan.stages if len(cards) > 1))
        planned = set(plan.split_modules)
        if found != planned:
            raise PlanError(
                f"the plan splits {sorted(planned - found)[:3]} which cannot be split now, or leaves out "
                f"{sorted(found - planned)[:3]}; make a new plan with poolrt.plan"
            )
        return plan

    def _modules(self, plan: Plan, cards: Sequence[int]) -> set[str]:
        """What a stage of these cards would split of its layers."""
        layers = [name for name, card in plan.card_of().items() if card == cards[0]] if len(plan.stages) > 1 else [""]
        modules = (rewrite.module for region in self.regions(cards).regions for rewrite in region.rewrites)
        return {module for module in modules if any(contains(layer, module) for layer in layers)}

    def deal(self, plan: Plan, layers: Sequence[Layer]) -> tuple[SplitStage, ...]:
        """What each stage of several cards splits of its layers."""
        found = [self.regions(cards) if len(cards) > 1 else None for cards in plan.stages]
        return deal_regions(self._model, layers, plan.card_of(), plan.stages, found)

    def facts(self, cards: Sequence[int]) -> SplitFacts:
        """What the planner wants to know of the whole model on these cards; equal for cards of equal shares."""
        shares = self._shares(cards)
        if shares not in self._facts:
            self._facts[shares] = (
                SplitFacts.whole(self._measured.profile)
                if len(cards) == 1
                else split_facts(self._model, self.regions(cards), self._call, self._measured)
            )
        return self._facts[shares]

    def regions(self, cards: Sequence[int]) -> RegionPlan:
        """How these cards would split the whole model.

        Raises:
            ModelError: if nothing of it can be split.
        """
        shares = self._shares(cards)
        if shares not in self._regions:
            devices = None if self._devices is None else [self._devices[card] for card in cards]
            found = regions_of(self._model, self._call, shares, self._options.batch_dim, devices)
            alone = len(cards) == len(self._topology) or len(self._options.stages) == 1
            self._regions[shares] = found if alone else self._inside_layers(found)
        return self._regions[shares]

    def _shares(self, cards: Sequence[int]) -> Shares:
        """A card with twice the memory of another gets twice as much."""
        memory = [self._topology.cards[card].memory_bytes for card in cards]
        return tuple(nbytes / sum(memory) for nbytes in memory)

    def _inside_layers(self, found: RegionPlan) -> RegionPlan:
        """Without what goes beyond one layer: the parts of it may be on different stages."""
        layers = [layer.name for layer in self._measured.layers]
        kept = [region for region in found.regions if _is_inside(region, layers)]
        why = "it is more than one layer, which may be on different stages"
        beyond = [Refusal(name=region.name, reason=why) for region in found.regions if region not in kept]
        return plan_of(self._model, found.cards, tuple(kept), (*found.refused, *beyond))


def _notes_on_shares(topology: Topology) -> Iterator[str]:
    if any(card.kind == "logical" for card in topology.cards):
        yield (
            "logical cards of one stage work in the caller's stream and take from the whole device: their shares are "
            "planned with, but not enforced as they are for whole layers"
        )


def _is_inside(region: Region, layers: Sequence[str]) -> bool:
    return any(all(contains(layer, rewrite.module) for rewrite in region.rewrites) for layer in layers)


def seconds_are_of_cards(model: nn.Module, topology: Topology) -> bool:
    """Whether what the model takes where it lies says how long it takes on these cards.

    Not on the host for GPUs; nor on virtual cards, which share the host's cores and may stand for other cards.
    """
    here = next(model.parameters()).device.type
    return all(card.kind != "virtual" and torch.device(card.device).type == here for card in topology.cards)
