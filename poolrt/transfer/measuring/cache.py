"""Measurements that were taken before, for the same cards on the same driver since the same start of the machine.

A file says what it holds for and is only believed for that. While a peer route is tried for the first time its pair
stands in the file: if the process dies of it, whoever comes next finds the pair there and leaves that route alone.

    {"schema": 1, "identity": {...}, "deadly": [], "trying": [0, 1], "process": 4711, "measurement": null}    meanwhile
    {"schema": 1, "identity": {...}, "deadly": [], "trying": null, "process": 4711, "measurement": {...}}     afterwards
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poolrt.keeping import write_whole
from poolrt.topology.identity import Identity
from poolrt.transfer.measuring.measurement import Measurement

SCHEMA = 1

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a file says."""

    measurement: Measurement | None = None
    deadly: tuple[tuple[int, int], ...] = ()
    """pairs whose peer route was being tried when the process that measured ended"""


class MeasurementFile:
    """Where the measurement of one set of cards is kept."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self._identity = _plain(identity)
        name = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self.path = directory / "measured" / f"{name}.json"

    def read(self) -> Kept:
        """What was kept; nothing where there is no file, a damaged one, or one for other cards."""
        try:
            body = json.loads(self.path.read_text())
            if body["schema"] != SCHEMA or body["identity"] != self._identity:
                return Kept()
            deadly = [(int(source), int(target)) for source, target in body["deadly"]]
            if body["trying"] is not None and not _is_alive(body["process"]):
                source, target = body["trying"]
                deadly.append((int(source), int(target)))
            plain = body["measurement"]
            measurement = None if plain is None else Measurement.from_dict(plain)
            return Kept(measurement=measurement, deadly=tuple(deadly))
        except (OSError, ValueError, KeyError, TypeError):  # ConfigurationError is a ValueError
            return Kept()

    def keep(self, measurement: Measurement) -> None:
        """Keep a measurement for the next time; without effect where nothing can be written."""
        self._write(deadly=[], trying=None, measurement=measurement.to_dict())

    def trying(self, pair: Pair, deadly: Sequence[Pair] = ()) -> None:
        """Note that the peer route of `pair` is about to be used for the first time, and which ones were deadly."""
        self._write(deadly=[list(other) for other in deadly], trying=list(pair), measurement=None)

    def _write(self, **state: Any) -> None:
        body = {"schema": SCHEMA, "identity": self._identity, "process": os.getpid(), **state}
        try:
            write_whole(self.path, json.dumps(body, indent=2))
        except OSError:
            return  # a home that cannot be written to costs a measurement at every start, nothing else


def _plain(identity: Identity) -> dict[str, Any]:
    """As it reads after a way through JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(identity)))
    return plain


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # an earlier process that had our number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
