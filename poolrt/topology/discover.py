"""The only reader of the machine: CUDA cards through the driver table."""

from __future__ import annotations

from itertools import permutations
from typing import Protocol

from poolrt.errors import DriverError
from poolrt.topology.catalog import link_preset
from poolrt.topology.topology import Card, Link, Topology


class DriverTable(Protocol):
    """What discovery asks of a driver. `poolrt._C` fills it from libcuda."""

    def device_count(self) -> int:
        """Cards that this process may see."""

    def device_name(self, card: int, /) -> str:
        """The maker's name."""

    def total_memory(self, card: int, /) -> int:
        """Bytes on the card, used or not."""

    def can_access_peer(self, card: int, peer: int, /) -> bool:
        """Whether the driver lets `card` read and write the memory of `peer`."""


def discover_cuda(driver: DriverTable | None = None) -> Topology:
    """The machine's CUDA cards; an empty topology if there is no driver or no card.

    The driver tells whether a card may access a peer but not over which wire. Such a pair is entered as PCIE with the
    bandwidth of pcie4x16, a low estimate that planning can live with; measurement replaces it.

    Raises:
        DriverError: if a driver is there and fails.
    """
    driver = driver or _cuda_driver()
    if driver is None:
        return Topology(cards=())
    cards = tuple(_card(driver, index) for index in range(driver.device_count()))
    links = tuple(_link(driver, source, target) for source, target in permutations(range(len(cards)), 2))
    return Topology(cards=cards, links=links)


def _cuda_driver() -> DriverTable | None:
    from poolrt import _C

    try:
        return _C.cuda_driver()
    except DriverError:
        return None


def _card(driver: DriverTable, index: int) -> Card:
    return Card(
        index=index,
        name=driver.device_name(index),
        kind="cuda",
        memory_bytes=driver.total_memory(index),
        device=f"cuda:{index}",
    )


def _link(driver: DriverTable, source: int, target: int) -> Link:
    preset = "pcie4x16" if driver.can_access_peer(source, target) else "host"
    return link_preset(preset).link(source, target)
