"""What users ask for, checked: each error says what was given and what to say instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from poolrt.errors import ConfigurationError, ModelError, PlanError
from poolrt.planning.limits import Spill
from poolrt.planning.plan import Plan
from poolrt.runtime.decide import Options
from poolrt.runtime.measuring.profile_model import fingerprint
from poolrt.runtime.placing.place import tensors_on_meta
from poolrt.runtime.pooled import pooled_of
from poolrt.runtime.state.compiled import behind_compile
from poolrt.topology.host_memory import available_nbytes
from poolrt.topology.topology import Topology
from poolrt.units import parse_nbytes

TensorParallel = int | Literal["auto"] | Sequence[Sequence[int]]
"""over how many cards each layer is split, or for each stage the indices of its cards"""


def options_of(
    topology: Topology,
    *,
    micro_batches: int | Literal["auto"],
    schedule: Literal["auto", "gpipe"],
    tensor_parallel: TensorParallel,
    batch_dim: int,
    optimizer: str,
    spill: int | str,
) -> Options:
    """What the user asked for, as the runtime reads it.

    Layers may be split, without being asked for, where who asked has not said how the batch is cut or how much spills,
    and where cards are not shares of one device, which gain nothing.

    Raises:
        ConfigurationError: if the topology has no such stages, or the size makes no sense.
    """
    is_open = tensor_parallel == "auto" and micro_batches == "auto" and spill in ("auto", "never")
    shared = any(card.kind == "logical" for card in topology.cards)
    return Options(
        micro_batches=micro_batches,
        schedule=schedule,
        batch_dim=batch_dim,
        optimizer=optimizer,
        spill=_spill_of(spill),
        host_bytes=available_nbytes() // 2,
        stages=_stages_of(tensor_parallel, topology),
        may_split=is_open and not shared and len(topology) > 1,
    )


def _stages_of(tensor_parallel: TensorParallel, topology: Topology) -> tuple[tuple[int, ...], ...]:
    """The cards of each stage, the lead card first; none where every card runs layers of its own.

    Raises:
        ConfigurationError: if the topology has no such stages.
    """
    if isinstance(tensor_parallel, str):
        if tensor_parallel != "auto":
            raise ConfigurationError(
                f'tensor_parallel is "auto", a number of cards, or a list of cards for each stage such as '
                f"[[0, 1], [2, 3]], not {tensor_parallel!r}"
            )
        return ()
    if isinstance(tensor_parallel, int):
        return () if tensor_parallel == 1 else _groups(tensor_parallel, len(topology))
    return _explicit([tuple(stage) for stage in tensor_parallel], len(topology))


def _groups(size: int, cards: int) -> tuple[tuple[int, ...], ...]:
    """Consecutive cards, so many in each stage."""
    if cards < 2:
        raise ConfigurationError(
            f"tensor_parallel={size} splits layers over several cards, and there is {cards}; leave it out, or give a "
            "topology of more cards"
        )
    if size < 1 or cards % size:
        possible = " or ".join(f"tensor_parallel={count}" for count in range(2, cards + 1) if cards % count == 0)
        raise ConfigurationError(
            f"tensor_parallel={size} does not divide {cards} cards into equal stages; say {possible}, or name the "
            f"cards of each stage, such as {_example(cards)}"
        )
    return tuple(tuple(range(first, first + size)) for first in range(0, cards, size))


def _explicit(stages: list[tuple[int, ...]], cards: int) -> tuple[tuple[int, ...], ...]:
    named = [card for stage in stages for card in stage]
    known = all(isinstance(card, int) and 0 <= card < cards for card in named)
    if not known or len(set(named)) < len(named) or not all(stages) or not stages:
        raise ConfigurationError(
            f"tensor_parallel={[list(stage) for stage in stages]} over {cards} cards: each stage names one card or "
            f"more, the lead card first, of 0 to {cards - 1}, and no card is in two; say {_example(cards)}"
        )
    return tuple(stages) if len(named) > len(stages) or len(named) < cards else _in_order(stages)


def _in_order(stages: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Every card a stage of its own, in the order of the cards: that is a pipeline as it always is."""
    return () if stages == sorted(stages) else tuple(stages)


def _example(cards: int) -> str:
    return str([list(range(cards // 2)), list(range(cards // 2, cards))] if cards > 2 else [list(range(cards))])


def _spill_of(spill: int | str) -> Spill:
    """As the planner reads it: a size becomes bytes."""
    if spill == "auto" or spill == "never":
        return "auto" if spill == "auto" else "never"
    return parse_nbytes(spill) if spill != 0 else 0


def placeable(model: nn.Module) -> nn.Module:
    """What is to be placed: the model, or the one that `torch.compile` was given; after seeing that it can be.

    Raises:
        ModelError: if the model has no weights, has them on meta, or is sharded already.
    """
    model = behind_compile(model)
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to place")
    on_meta = tensors_on_meta(model)
    if on_meta:
        raise ModelError(
            f"{len(on_meta)} tensors of {type(model).__name__} have no values (device meta), such as {on_meta[0]!r}; "
            "load or initialise the weights first"
        )
    if pooled_of(model) is not None:
        raise ModelError(f"this {type(model).__name__} is sharded already")
    return model


def check_plan(plan: Plan, model: nn.Module, stated: Topology, proven: Topology) -> None:
    """See that a plan made earlier is for this model and these cards.

    Args:
        plan: made by `poolrt.plan`, or read from JSON.
        model: the user's.
        stated: the topology as it was given.
        proven: the same with the links that proved to be good.

    Raises:
        PlanError: if it is not.
    """
    if plan.model != fingerprint(model):
        raise PlanError(
            f"the plan was made for another model (fingerprint {plan.model}, this one has {fingerprint(model)})"
        )
    same_ways = [link.kind for link in stated.links] == [link.kind for link in proven.links]
    known = {proven.fingerprint(), *([stated.fingerprint()] if same_ways else [])}
    if plan.topology not in known:
        changed = "" if same_ways else "; links proved to be no good since, so make the plan anew"
        raise PlanError(
            f"the plan was made for another topology (fingerprint {plan.topology}, this one has "
            f"{proven.fingerprint()}){changed}"
        )
    if not plan.feasible:
        raise PlanError(f"the plan does not fit its cards: {plan.reason}")
