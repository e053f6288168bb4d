"""The decision: which layers on which card, how many micro-batches, and what that is predicted to cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from poolrt.errors import PlanError
from poolrt.planning.explain import explain
from poolrt.planning.limits import Spill
from poolrt.planning.pooled_bytes import PooledBytes

SCHEMA = 1
_SPILL_NUMBERS = ("spills_optimizer", "pool_limit_bytes", "predicted_spill_s")


@dataclass(frozen=True, kw_only=True)
class PredictedBytes:
    """Bytes on one card at its predicted peak, by what holds them."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    workspace: int = 0
    guests: int = 0
    """pooled bytes of other cards that lie here"""

    @property
    def total(self) -> int:
        """The predicted peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace + self.guests


@dataclass(frozen=True, kw_only=True)
class CardPlan:
    """One card's share."""

    index: int
    layers: tuple[str, ...]
    predicted_bytes: PredictedBytes = field(default_factory=PredictedBytes)
    capacity_bytes: int = 0
    predicted_busy_s: float = 0.0
    """seconds of one step in which this card computes"""
    spilled_layers: tuple[str, ...] = ()
    """layers whose weights come from the pool, in the order in which to ask for them: the first ones lie nearest"""
    spills_optimizer: bool = False
    """whether the optimizer's state of all layers of this card, and the temporaries of its step, come from the pool"""
    pooled_bytes: PooledBytes = field(default_factory=PooledBytes)
    """what this card takes from the pool, and where that is predicted to lie"""
    pool_limit_bytes: int = 0
    """how many bytes of pooled tensors may lie on this card, its own or of others"""
    predicted_spill_s: float = 0.0
    """seconds of one step that this card spends on bytes that lie elsewhere; part of predicted_busy_s"""

    @property
    def predicted_peak_bytes(self) -> int:
        """All kinds together."""
        return self.predicted_bytes.total


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decision for one model, one topology and one batch size. It moves nothing by itself."""

    model: str
    """fingerprint of the model it was made for"""
    topology: str
    """fingerprint of the topology it was made for"""
    batch_size: int
    micro_batches: int
    schedule: str
    optimizer: str
    cards: tuple[CardPlan, ...]
    predicted_step_s: float
    notes: tuple[str, ...] = ()
    feasible: bool = True
    reason: str = ""
    """why it is not feasible, and what would make it so"""
    spill: Spill = "never"
    """what was asked for: "auto", "never", or bytes on the host"""
    host_spill_bytes: int = 0
    """pooled bytes that are predicted to lie on the host, of all cards together"""
    tensor_parallel: int = 1
    """over how many cards layers are split at most: the size of the largest stage; with 1, layers are whole"""
    stages: tuple[tuple[int, ...], ...] = ()
    """indices of the cards that run the same layers together, the lead card first, in the order of the layers; a card
    in none holds nothing. Empty: every card runs layers of its own"""
    split_modules: tuple[str, ...] = ()
    """names of the modules that all cards of their stage run together, each with a piece of the weights"""

    @property
    def spills(self) -> bool:
        """Whether anything comes from the pool."""
        return any(card.pooled_bytes.all.total for card in self.cards)

    def card_of(self) -> dict[str, int]:
        """Layer name to card index: that of the lead card where several cards run it together."""
        following = {card for stage in self.stages for card in stage[1:]}
        return {layer: card.index for card in self.cards if card.index not in following for layer in card.layers}

    def to_json(self) -> str:
        """The plan as JSON, schema 1."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, schema 1."""
        body = {"schema": SCHEMA, **asdict(self)}
        for card, plain in zip(self.cards, body["cards"], strict=True):
            plain["predicted_peak_bytes"] = card.predicted_peak_bytes
            if not self.spills:
                del plain["predicted_bytes"]["guests"]
        return body

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; unknown keys are passed over.

        Raises:
            PlanError: if the text is no plan of schema 1.
        """
        try:
            body = json.loads(text)
            if body["schema"] != SCHEMA:
                raise PlanError(f"this plan has schema {body['schema']}, this version reads schema {SCHEMA}")
            cards = tuple(_card_from(plain) for plain in body["cards"])
            plain = {name: body[name] for name in cls.__dataclass_fields__ if name in body}
            stages = tuple(tuple(stage) for stage in body.get("stages", ()))
            names = {name: tuple(body.get(name, ())) for name in ("notes", "split_modules")}
            return cls(**{**plain, "cards": cards, "stages": stages, **names})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"this text is not a plan written by to_json: {error!r}") from error

    def explain(self) -> str:
        """The plan as a table for people: card, layers, bytes by kind, share of time, predicted peak."""
        return explain(self)


def _card_from(plain: dict[str, Any]) -> CardPlan:
    return CardPlan(
        index=plain["index"],
        layers=tuple(plain["layers"]),
        predicted_bytes=PredictedBytes(**plain["predicted_bytes"]),
        capacity_bytes=plain["capacity_bytes"],
        predicted_busy_s=plain["predicted_busy_s"],
        **_spill_from(plain),
    )


def _spill_from(plain: dict[str, Any]) -> dict[str, Any]:
    """What a card spills; a plan written before there was spilling says nothing of it."""
    known: dict[str, Any] = {name: plain[name] for name in _SPILL_NUMBERS if name in plain}
    if "spilled_layers" in plain:
        known["spilled_layers"] = tuple(plain["spilled_layers"])
    if "pooled_bytes" in plain:
        known["pooled_bytes"] = PooledBytes.from_dict(plain["pooled_bytes"])
    return known
