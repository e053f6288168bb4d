"""Recorded boxes: real machines written down in boxes/*.json, each with where its figures are from.

{
  "card": "NVIDIA GeForce RTX 3090",        the same for all cards of the box
  "memory_mib": 24576,                      as nvidia-smi prints it
  "pcie": "4x16",                           generation and lanes of every slot
  "peer_access": "nvlink",                  "all" pairs, those with "nvlink", or "none"
  "measured_gigabytes_per_s": {"NV4": 51},  what one copy reached over such a relation, if anybody measured it
  "numa_nodes": [0, 0],
  "relations": ["X   NV4",                  as `nvidia-smi topo -m` prints them, network cards left out
                "NV4 X"]
}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import permutations
from typing import Any

from poolrt.errors import ConfigurationError
from poolrt.topology.assemble import assemble
from poolrt.topology.facts import CardFacts, Machine, PairFacts, PcieFacts
from poolrt.topology.topology import Topology

_FOLDER = resources.files("poolrt.topology") / "boxes"


@dataclass(frozen=True, kw_only=True)
class Box:
    """A recorded machine."""

    name: str
    about: str
    """one sentence"""
    sources: tuple[str, ...]
    machine: Machine


def box_names() -> list[str]:
    """The recorded boxes, sorted."""
    return sorted(entry.name.removesuffix(".json") for entry in _FOLDER.iterdir() if entry.name.endswith(".json"))


def load_box(name: str) -> Box:
    """The recorded box called `name`.

    Raises:
        ConfigurationError: if there is none; the message lists those that are there.
    """
    if name not in box_names():
        raise ConfigurationError(f"no recorded box is called {name!r}; there are: {', '.join(box_names())}")
    body = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Box(name=name, about=body["about"], sources=tuple(body["sources"]), machine=_machine(body))


def virtual_box(name: str, memory_bytes: Sequence[int] | None = None) -> Topology:
    """The box as virtual cards, on devices vcard:0, vcard:1, ..., with the links of the real thing.

    Args:
        name: of a recorded box.
        memory_bytes: a size per card instead of the real one, in bytes.

    Raises:
        ConfigurationError: if there is no such box, or the number of sizes is not that of its cards.
    """
    machine = load_box(name).machine
    if memory_bytes is not None:
        if len(memory_bytes) != len(machine.cards):
            raise ConfigurationError(f"box {name} has {len(machine.cards)} cards, got {len(memory_bytes)} memory sizes")
        sized = zip(machine.cards, memory_bytes, strict=True)
        machine = replace(machine, cards=tuple(replace(card, memory_bytes=nbytes) for card, nbytes in sized))
    return assemble(machine, "virtual", lambda position: f"vcard:{position}")


def _machine(body: dict[str, Any]) -> Machine:
    generation, width = (int(part) for part in body["pcie"].split("x"))
    major, minor = (int(part) for part in body["compute_capability"].split("."))
    relations = [row.split() for row in body["relations"]]
    return Machine(
        cards=tuple(
            CardFacts(
                index=index,
                name=body["card"],
                memory_bytes=body["memory_mib"] << 20,
                compute_capability=(major, minor),
                numa_node=node,
                pcie=PcieFacts(maximum_generation=generation, maximum_width=width),
            )
            for index, node in enumerate(body["numa_nodes"])
        ),
        pairs=tuple(
            _pair(source, target, relations[source][target], body)
            for source, target in permutations(range(len(relations)), 2)
        ),
    )


def _pair(source: int, target: int, relation: str, body: dict[str, Any]) -> PairFacts:
    granted = body["peer_access"] == "all" or (body["peer_access"] == "nvlink" and relation.startswith("NV"))
    measured = body["measured_gigabytes_per_s"].get(relation)
    status = "OK" if granted else "GNS"
    return PairFacts(
        source=source,
        target=target,
        relation=relation,
        peer_status={"read": status, "write": status},
        measured_bytes_per_s=measured * 1e9 if measured else None,
    )
