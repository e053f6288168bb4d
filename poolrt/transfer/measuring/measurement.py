"""All that was measured of the ways between some cards, as one value, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind
from poolrt.transfer.measuring.crossover import KindBySize
from poolrt.transfer.measuring.figures import Direction, Line, Point, RouteFigures
from poolrt.transfer.measuring.verdict import PairVerdict, Proof

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures, proofs and verdicts. Cards are numbered as in the topology that was measured."""

    devices: tuple[str, ...]
    """torch's name of each card's device"""
    figures: tuple[RouteFigures, ...] = ()
    proofs: tuple[Proof, ...] = ()
    verdicts: tuple[PairVerdict, ...] = ()
    """one per ordered pair that has a peer route"""

    def verdict(self, source: int, target: int) -> PairVerdict | None:
        """What is done with the peer route between two cards; None if they have none."""
        found = (verdict for verdict in self.verdicts if (verdict.source, verdict.target) == (source, target))
        return next(found, None)

    def of_route(self, route: RouteKind, source: int, target: int, direction: Direction) -> RouteFigures | None:
        """The figures of one route; None if it was not measured."""
        wanted = (route, source, target, direction)
        return next((x for x in self.figures if (x.route, x.source, x.target, x.direction) == wanted), None)

    def bytes_per_s(self, source: int, target: int) -> float | None:
        """What one large copy gets on the route that it takes, or on the only one measured; None if none was."""
        verdict = self.verdict(source, target)
        kinds: tuple[RouteKind, ...] = (verdict.choice[-1][1],) if verdict else ("LOCAL", "HOST", "P2P")
        found = (self.of_route(kind, source, target, "one way") for kind in kinds)
        return next((figures.reached_bytes_per_s for figures in found if figures), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, schema 1."""
        figures = [
            asdict(x)
            | {"half_bandwidth_nbytes": x.line.half_bandwidth_nbytes, "reached_bytes_per_s": x.reached_bytes_per_s}
            for x in self.figures
        ]
        verdicts = [
            asdict(verdict) | {"choice": [{"from_nbytes": start, "route": kind} for start, kind in verdict.choice]}
            for verdict in self.verdicts
        ]
        proofs = [asdict(proof) for proof in self.proofs]
        return {
            "schema": SCHEMA,
            "devices": list(self.devices),
            "figures": figures,
            "proofs": proofs,
            "verdicts": verdicts,
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Measurement:
        """What `to_dict` gave; unknown keys are passed over.

        Raises:
            ConfigurationError: if these are no values of schema 1.
        """
        try:
            if body["schema"] != SCHEMA:
                raise ConfigurationError(f"this measurement has schema {body['schema']}; {SCHEMA} can be read")
            return cls(
                devices=tuple(str(device) for device in body["devices"]),
                figures=tuple(_figures(plain) for plain in body["figures"]),
                proofs=tuple(Proof(**_known(Proof, plain)) for plain in body["proofs"]),
                verdicts=tuple(
                    PairVerdict(**_known(PairVerdict, plain) | {"choice": _choice(plain["choice"])})
                    for plain in body["verdicts"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"these values are no measurement: {error!r}") from error

    def to_json(self) -> str:
        """JSON, schema 1."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """What `to_json` wrote.

        Raises:
            ConfigurationError: if the text is no measurement of schema 1.
        """
        try:
            body = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"this text is no JSON: {error}") from error
        return cls.from_dict(body)


def _figures(plain: Mapping[str, Any]) -> RouteFigures:
    points = tuple(Point(**_known(Point, point)) for point in plain["points"])
    facts = _known(RouteFigures, plain) | {"points": points, "line": Line(**_known(Line, plain["line"]))}
    return RouteFigures(**facts)


def _choice(plain: Any) -> KindBySize:
    return tuple((int(piece["from_nbytes"]), piece["route"]) for piece in plain)


def _known(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain[name] for name in kind.__dataclass_fields__ if name in plain}  # type: ignore[attr-defined]
