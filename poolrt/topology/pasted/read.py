"""Reads a pasted text line by line: one or several outputs of nvidia-smi with prompts and comments between.

    nvidia-smi                  table.py      names, memory, PCI addresses, driver
    nvidia-smi -L               card_list.py  names, UUIDs
    nvidia-smi topo -m          matrix.py     relations, NUMA nodes
    nvidia-smi topo -p2p r      matrix.py     peer access
    nvidia-smi nvlink -s, -R    nvlink.py     state, rate and far end of each link

Every line is tried on its own, with only the last header, the last card and the last command in mind. So a line that
was cut or put in between spoils itself and nothing else; it is named in `not_understood`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from poolrt.topology.facts import Machine
from poolrt.topology.pasted.card_list import is_mig_slice, read_listed_card
from poolrt.topology.pasted.command import read_command
from poolrt.topology.pasted.draft import CardDraft, Draft
from poolrt.topology.pasted.lines import Line, lines_of, says_nothing
from poolrt.topology.pasted.matrix import Header, is_network_row, read_header, read_row
from poolrt.topology.pasted.nvlink import read_link_state, read_remote_end, says_none_active
from poolrt.topology.pasted.table import is_rest_of_table, read_memory, read_mig, read_table_card, read_versions


@dataclass(frozen=True, kw_only=True)
class Remark:
    """A line that could not be used, or was used with a doubt."""

    number: int
    """of the line, from 1"""
    text: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}: {self.text.strip()[:80]!r}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a pasted text tells."""

    machine: Machine
    remarks: tuple[Remark, ...]
    """in the order of the lines"""


def read_pasted(text: str) -> Reading:
    """What `text` tells about a machine. Never fails: what cannot be used is in `remarks`."""
    reader = _Reader()
    for line in lines_of(text):
        reader.take(line)
    return Reading(machine=reader.draft.machine(), remarks=tuple(reader.remarks))


@dataclass(kw_only=True)
class _Reader:
    """Takes the lines, keeping in mind what the following ones refer to."""

    draft: Draft = field(default_factory=Draft)
    remarks: list[Remark] = field(default_factory=list)
    header: Header | None = None
    capabilities: tuple[str, ...] | None = None
    current: CardDraft | None = None
    """the card whose links, slices or table lines follow"""

    def take(self, line: Line) -> None:
        """Use one line, or remark on it."""
        forms: tuple[Callable[[Line], bool], ...] = (
            self._take_command,
            lambda line: says_nothing(line.text),
            self._take_header,
            self._take_row,
            self._take_card,
            self._take_link,
            self._take_table,
        )
        if not any(form(line) for form in forms):
            self._remark(line, "not understood")

    def _take_command(self, line: Line) -> bool:
        command = read_command(line.text)
        if command is None:
            return False
        self.capabilities, self.header = command.capabilities, None
        self.current = None if command.card is None else self.draft.card(command.card)
        return True

    def _take_header(self, line: Line) -> bool:
        header = read_header(line.text)
        if header is None:
            return False
        self.header = header
        self.draft.mention(int(name[3:]) for name in header.devices if name.startswith("GPU"))
        return True

    def _take_row(self, line: Line) -> bool:
        if is_network_row(line.text):
            return True
        if not line.text.lstrip().startswith("GPU") or line.text.lstrip()[3:4].isspace():
            return False
        if self.header is None:
            self._remark(line, "a row of a matrix whose header is missing")
            return True
        row = read_row(line.text, self.header)
        if row is None:
            return False
        if row.is_status:
            self.draft.add_statuses(row, self.capabilities or ("read",))
        else:
            self.draft.add_relations(row)
        if row.misfit:
            self._remark(line, row.misfit)
        return True

    def _take_card(self, line: Line) -> bool:
        if is_mig_slice(line.text):
            self._card(line).mig = True
            return True
        listed = read_listed_card(line.text)
        if listed is None:
            return False
        self.current = self.draft.card(listed.index)
        self.current.call(listed.name)
        self.current.uuid = listed.uuid or self.current.uuid
        return True

    def _take_link(self, line: Line) -> bool:
        if port := read_link_state(line.text):
            card = self._card(line)
            card.ports[port.index] = port
        elif end := read_remote_end(line.text):
            card = self._card(line)
            card.remote_ends[end.index] = end
        elif says_none_active(line.text):
            card = self._card(line)
        else:
            return False
        card.links_seen = True
        return True

    def _take_table(self, line: Line) -> bool:
        if found := read_versions(line.text):
            self.draft.versions = found
        elif row := read_table_card(line.text):
            self.current = self.draft.card(row.index)
            self.current.call(row.name)
            self.current.bus_id = row.bus_id
        elif self.current and (nbytes := read_memory(line.text)):
            self.current.memory_bytes = nbytes
        elif self.current and (mig := read_mig(line.text)) is not None:
            self.current.mig = mig
        else:
            return is_rest_of_table(line.text)
        return True

    def _card(self, line: Line) -> CardDraft:
        """The card that a line belongs to; without one above it, card 0 is taken and a remark made."""
        if self.current is None:
            self._remark(line, "no card is named above this line; taken as card 0")
            self.current = self.draft.card(0)
        return self.current

    def _remark(self, line: Line, reason: str) -> None:
        self.remarks.append(Remark(number=line.number, text=line.text, reason=reason))
