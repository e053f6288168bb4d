"""What has been read so far of a pasted text, to be turned into a Machine at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from poolrt.topology.facts import CardFacts, DriverFacts, Machine, NvlinkPort, PairFacts, RemoteKind
from poolrt.topology.pasted.far_ends import addresses_in_order, behind_switches, links_by_pair
from poolrt.topology.pasted.matrix import Row
from poolrt.topology.pasted.nvlink import RemoteEnd
from poolrt.topology.pasted.table import Versions


@dataclass(kw_only=True)
class CardDraft:
    """One card as far as it has been read."""

    name: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    memory_bytes: int | None = None
    numa_node: int | None = None
    cpu_affinity: str | None = None
    mig: bool | None = None
    ports: dict[int, NvlinkPort] = field(default_factory=dict)
    """as `nvlink -s` numbers them"""
    remote_ends: dict[int, RemoteEnd] = field(default_factory=dict)
    """as `nvlink -R` numbers them"""
    links_seen: bool = False
    """whether the text tells the state of its links, be it that none is up"""

    def call(self, name: str | None) -> None:
        """Take a name, unless a longer one is known: tables cut names and end them in dots."""
        if name and (self.name is None or self.name.endswith("...")):
            self.name = name

    def far_ends(self) -> list[str]:
        """The PCI address behind each active link, in the order of the links."""
        return [self.remote_ends[number].bus_id for number in sorted(self.remote_ends)]

    def joined_ports(self, remote: RemoteKind) -> tuple[NvlinkPort, ...]:
        """The links with their far ends. `nvlink -R` numbers the active links only, `nvlink -s` all of them."""
        ends = self.far_ends()
        if not self.ports:
            return tuple(
                NvlinkPort(index=index, active=True, remote=remote, remote_bus_id=end) for index, end in enumerate(ends)
            )
        ports = [self.ports[number] for number in sorted(self.ports)]
        if len(ends) != sum(port.active for port in ports):
            return tuple(ports)
        rest = iter(ends)
        return tuple(replace(port, remote=remote, remote_bus_id=next(rest)) if port.active else port for port in ports)

    def facts(self, index: int, remote: RemoteKind) -> CardFacts:
        """The card as a value, whose links lead to `remote` where they were named."""
        ports = self.joined_ports(remote)
        return CardFacts(
            index=index,
            name=self.name,
            uuid=self.uuid,
            bus_id=self.bus_id,
            memory_bytes=self.memory_bytes,
            numa_node=self.numa_node,
            cpu_affinity=self.cpu_affinity,
            nvlinks=ports if ports or self.links_seen else None,
            mig=self.mig,
        )


@dataclass(kw_only=True)
class Draft:
    """A machine as far as it has been read."""

    cards: dict[int, CardDraft] = field(default_factory=dict)
    relations: dict[tuple[int, int], str] = field(default_factory=dict)
    statuses: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    versions: Versions | None = None

    def card(self, index: int) -> CardDraft:
        """The card with this number, made at its first mention."""
        return self.cards.setdefault(index, CardDraft())

    def mention(self, indices: Iterable[int]) -> None:
        """Note that these cards exist."""
        for index in indices:
            self.card(index)

    def add_relations(self, row: Row) -> None:
        """Take a row of `topo -m`. The matrix is symmetric, so a row also speaks for rows that are missing."""
        card = self.card(row.card)
        card.cpu_affinity = row.cpu_affinity or card.cpu_affinity
        card.numa_node = card.numa_node if row.numa_node is None else row.numa_node
        for other, relation in row.cells.items():
            self.mention([other])
            self.relations[row.card, other] = relation
            self.relations.setdefault((other, row.card), relation)

    def add_statuses(self, row: Row, capabilities: Iterable[str]) -> None:
        """Take a row of `topo -p2p`."""
        self.mention([row.card, *row.cells])
        for other, status in row.cells.items():
            self.statuses.setdefault((row.card, other), {}).update(dict.fromkeys(capabilities, status))

    def machine(self) -> Machine:
        """What the text tells, as a value."""
        indices = sorted(self.cards)
        far_ends = {index: self.cards[index].far_ends() for index in indices}
        if not any(self.cards[index].bus_id for index in indices) and not behind_switches(far_ends):
            for address, index in addresses_in_order(far_ends).items():
                self.cards[index].bus_id = address
        counted = links_by_pair(far_ends, {index: self.cards[index].bus_id for index in indices})
        counted = counted or self._links_of_single_partners()
        remote: RemoteKind = "SWITCH" if behind_switches(far_ends) else "GPU"
        pairs = sorted({*self.relations, *self.statuses, *counted})
        return Machine(
            cards=tuple(self.cards[index].facts(index, remote) for index in indices),
            pairs=tuple(
                PairFacts(
                    source=source,
                    target=target,
                    relation=self.relations.get((source, target)),
                    nvlinks=counted.get((source, target)),
                    peer_status=self.statuses.get((source, target), {}),
                )
                for source, target in pairs
                if source != target
            ),
            driver=DriverFacts(
                loaded=True if self.versions else None,
                version=self.versions.driver if self.versions else None,
                cuda_version=self.versions.cuda if self.versions else None,
            ),
        )

    def _links_of_single_partners(self) -> dict[tuple[int, int], int]:
        """Active links of pairs that the matrix joins by NVLink to each other and to nobody else.

        `topo -m` may print the links that were set up although one has died since; `nvlink -s` counts what is up.
        """
        found = {}
        for source, target in self.relations:
            partners = [y for (x, y), relation in self.relations.items() if x == source and relation.startswith("NV")]
            ports = self.cards[source].ports
            if partners == [target] and ports:
                found[source, target] = sum(port.active for port in ports.values())
        return found
