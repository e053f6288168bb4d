"""What is on this machine, asked of NVML, CUDA and the files of Linux. Nothing else here reads the machine.

Sources.of_this_machine()     who answers
  read_machine(sources)       all cards, how they are joined, the driver
    discover_cuda(sources)    those that CUDA shows, as a topology
    read_everything(sources)  and the computer around them, for the doctor
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations

from poolrt.errors import DriverError
from poolrt.topology.assemble import assemble
from poolrt.topology.facts import CardFacts, DriverFacts, Machine, PairFacts
from poolrt.topology.relation import pcie_relation
from poolrt.topology.sources.cuda import CudaReading, LibraryIdentity, read_cuda
from poolrt.topology.sources.files import SystemFiles
from poolrt.topology.sources.host import read_host, read_modules
from poolrt.topology.sources.join import join
from poolrt.topology.sources.nvml import Nvml, open_nvml
from poolrt.topology.sources.pci import device_path, with_slot
from poolrt.topology.sources.protocols import CudaIdentity, DriverTable, FileSource, NvmlSource
from poolrt.topology.topology import Topology
from poolrt.topology.visible import refuse_mig


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Who is asked. None is a source that this machine does not have."""

    driver: DriverTable | None = None
    driver_error: str | None = None
    """why there is no driver, in CUDA's word"""
    identity: CudaIdentity | None = None
    nvml: NvmlSource | None = None
    files: FileSource | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_this_machine(cls, watch_s: float = 0.0) -> Sources:
        """The real ones.

        Args:
            watch_s: how long NVML's error counters are watched.
        """
        driver, error = _cuda_driver()
        library = open_nvml()
        return cls(
            driver=driver,
            driver_error=error,
            identity=LibraryIdentity.open() if driver else None,
            nvml=Nvml(library, watch_s) if library else None,
            files=SystemFiles(),
            environment=os.environ,
        )


def discover_cuda(sources: Sources | None = None) -> Topology:
    """The machine's CUDA cards in CUDA's order; an empty topology if there is no driver or no card.

    Bandwidths are the catalogue's for the links that were seen: NVLinks that are up, PCIe by the best that card and
    slot can do together. A copy that is measured replaces them.

    Raises:
        DriverError: if a driver is there and fails.
        ConfigurationError: if CUDA_VISIBLE_DEVICES names a MIG slice.
    """
    machine = read_shown_machine(sources or Sources.of_this_machine())
    numbers = [card.cuda_index for card in machine.cards]
    return assemble(machine, "cuda", lambda position: f"cuda:{numbers[position]}")


def read_shown_machine(sources: Sources) -> Machine:
    """The machine with the cards that CUDA shows, in CUDA's order, and without the others.

    Raises:
        DriverError: if CUDA is there and fails.
        ConfigurationError: if CUDA_VISIBLE_DEVICES names a MIG slice.
    """
    refuse_mig(sources.environment.get("CUDA_VISIBLE_DEVICES"))
    machine = read_machine(sources)
    shown = {card.cuda_index: card for card in machine.cards if card.cuda_index is not None}
    return replace(machine, cards=tuple(shown[number] for number in sorted(shown)))


def read_machine(sources: Sources) -> Machine:
    """Cards, pairs and driver, joined from what the sources say. A source that is missing leaves its facts unseen.

    Raises:
        DriverError: if CUDA is there and fails.
    """
    nvml = sources.nvml.read() if sources.nvml else Machine()
    cuda = read_cuda(sources.driver, sources.identity) if sources.driver else CudaReading(error=sources.driver_error)
    machine = join(nvml, cuda, sources.environment.get("CUDA_VISIBLE_DEVICES"))
    if sources.files is None:
        return machine
    cards = tuple(with_slot(sources.files, card) for card in machine.cards)
    return replace(machine, cards=cards, pairs=_related(sources.files, cards, machine))


def read_everything(sources: Sources) -> Machine:
    """As `read_machine`, and the computer around the cards. A CUDA that fails becomes a fact, not an error."""
    try:
        machine = read_machine(sources)
    except DriverError as error:
        machine = read_machine(replace(sources, driver=None, driver_error=error.name or "UNKNOWN"))
    if sources.files is None:
        return machine
    return replace(
        machine,
        driver=_merged(machine.driver, read_modules(sources.files)),
        host=read_host(sources.files, sources.environment),
    )


def _merged(first: DriverFacts, second: DriverFacts) -> DriverFacts:
    """Two views of one driver; what the first has seen counts."""
    return replace(second, **{name: value for name, value in vars(first).items() if value is not None})


def _related(files: FileSource, cards: tuple[CardFacts, ...], machine: Machine) -> tuple[PairFacts, ...]:
    """The pairs, with their relation from sysfs where nobody told it."""
    paths = {card.index: device_path(files, card.bus_id) if card.bus_id else None for card in cards}
    pairs = []
    for source, target in permutations(cards, 2):
        pair = machine.pair(source.index, target.index)
        first, second = paths[source.index], paths[target.index]
        if pair.relation is None and first and second:
            relation = pcie_relation(first, second, source.numa_node == target.numa_node)
            pair = replace(pair, relation=relation, pcie_relation=relation)
        pairs.append(pair)
    return tuple(pairs)


def _cuda_driver() -> tuple[DriverTable | None, str | None]:
    from poolrt import _C

    try:
        return _C.cuda_driver(), None
    except DriverError as error:
        return None, error.name or "NOT_FOUND"
