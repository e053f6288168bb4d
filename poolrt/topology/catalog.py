"""Known links by name, for planning: what one copy in one direction reaches, with where the figure is from.

    nvlink3x4      generation 3, four links between the two cards
    pcie4x16       generation 4, sixteen lanes
    host4x16       through the host's memory, peer access refused, cards in slots of generation 4 with sixteen lanes
    host           the same as host4x16
    memory         virtual cards: all of it is the host's memory, nothing is refused

Bandwidth is per direction, in bytes per second, 1 GB = 1e9 bytes. Advertised totals count both directions and all the
links of a card: an A100's "600 GB/s" are 12 links x 25 GB/s x 2 directions. `nominal_bytes_per_s` is payload on the
wire; a copy reaches `reachable` of it (packet headers, flow control), and that product is what planning uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from poolrt.errors import ConfigurationError
from poolrt.topology.topology import Link, LinkKind

# Fixed cost of one peer copy, from a sweep of copy sizes over an RTX A6000 pair with four NVLinks: 64 KiB to 1 GiB fit
# 6.7 us + nbytes / 50.9 GB/s within 3 %.
_PEER_COPY_S = 7e-6
# p2pBandwidthLatencyTest with peer access off: 10 to 25 us (GeForce RTX 20/30, A100, RTX 6000 Ada).
_HOST_COPY_S = 20e-6
# A private copy within the host's memory on a small CPU; an assumption, used for planning virtual cards only.
_MEMORY_COPY_BYTES_PER_S = 8e9
# Handing a virtual card from one thread to the next takes 9 us; a copy adds its own call.
_MEMORY_COPY_S = 10e-6


@dataclass(frozen=True, kw_only=True)
class LinkPreset:
    """One kind of link between two cards."""

    name: str
    kind: LinkKind
    relation: str
    nominal_bytes_per_s: float
    """payload rate of the wire in one direction"""
    reachable: float
    """the part of it that a large copy gets, 0..1"""
    latency_s: float
    """fixed cost of one copy"""
    source: str
    """where the figures are from"""

    @property
    def bytes_per_s(self) -> float:
        """What a large copy in one direction reaches."""
        return self.nominal_bytes_per_s * self.reachable

    def link(self, source: int, target: int) -> Link:
        """This kind of link from card `source` to card `target`."""
        return Link(
            source=source,
            target=target,
            kind=self.kind,
            relation=self.relation,
            bytes_per_s=self.bytes_per_s,
            latency_s=self.latency_s,
        )


@dataclass(frozen=True, kw_only=True)
class _NvlinkPart:
    generation: int
    board: str
    links: range
    per_link_bytes_per_s: float
    signal_bytes_per_s: float
    """what `nvidia-smi nvlink -s` prints for one link"""
    reachable: float
    source: str


def _part(generation: int, board: str, links: range, gigabytes_per_s: float, signal: float, reachable: float,
          source: str) -> _NvlinkPart:  # fmt: skip
    return _NvlinkPart(
        generation=generation, board=board, links=links, per_link_bytes_per_s=gigabytes_per_s * 1e9,
        signal_bytes_per_s=signal * 1e9, reachable=reachable, source=source,
    )  # fmt: skip


# The first part that fits generation, board word and number of links is meant. Generation 3 has two link speeds: GA10x
# cards (RTX 3090, A6000, A40) always join by four links of 14.0625 GB/s, so a bare nvlink3x4 is theirs; the four-link
# pairs of a switchless A100 SXM4 board are written nvlink3sxmx4, and a GA10x bridge with a dead link nvlink3rtxx3.
# Figures: GB/s of one link in one direction, payload and as signalled; part of the payload that a large copy reaches.
_NVLINK_PARTS = (
    _part(1, "", range(1, 5), 20, 20, 0.91, "P100 SXM2: two links 36.4 GB/s (Dell ready-specs document)"),
    _part(2, "", range(1, 7), 25, 25.781, 0.93, "V100 SXM2: two links 47.9 GB/s; POWER9, three links: 68.5 to 69.2"),
    _part(3, "", range(4, 5), 14.0625, 14.0625, 0.92, "RTX A6000, four links: 50.9 to 52.2 GB/s; GA102 whitepaper"),
    _part(3, "", range(1, 13), 25, 25, 0.90, "A100 SXM4: twelve links 265 to 276 GB/s; NCCL tests issue 228"),
    _part(3, "sxm", range(1, 13), 25, 25, 0.90, "A100, twelve links: 265 to 276 GB/s; NCCL tests issue 331"),
    _part(3, "rtx", range(1, 5), 14.0625, 14.0625, 0.92, "RTX A6000: 50.9 to 52.2 GB/s over four; GA102 whitepaper"),
    _part(4, "", range(1, 19), 25, 26.5625, 0.83, "H100 SXM: 371 to 377 GB/s, NCCL issue 1264; H200: 396"),
    _part(5, "", range(1, 19), 50, 53.125, 0.83, "B200 data sheet; reachable part as generation 4, an assumption"),
)  # fmt: skip

# One lane: 2.5 and 5 GT/s with 8b/10b encoding, 8, 16 and 32 GT/s with 128b/130b, 64 GT/s with 242 of 256 bytes a FLIT.
_PCIE_LANE_BYTES_PER_S = {
    1: 2.5e9 / 8 * 8 / 10,
    2: 5e9 / 8 * 8 / 10,
    3: 8e9 / 8 * 128 / 130,
    4: 16e9 / 8 * 128 / 130,
    5: 32e9 / 8 * 128 / 130,
    6: 64e9 / 8 * 242 / 256,
}
# Pinned copies of 12.2 to 13.2 GB/s (generation 3, RTX 2080 Ti), peer copies of 26.3 GB/s (4, RTX 6000 Ada) and 53 to
# 56.6 GB/s (5, RTX PRO 6000), all over sixteen lanes; generations 1, 2 and 6 take their neighbour's, an assumption.
_PCIE_REACHABLE = {1: 0.80, 2: 0.80, 3: 0.80, 4: 0.83, 5: 0.85, 6: 0.85}
# Through the host's memory with peer access off: 6.1 GB/s (generation 3, RTX 3090), 11.3 (4, two RTX 3090), 36.3 to 38
# (5, H100); the neighbours' again for generations 1, 2 and 6.
_HOST_REACHABLE = {1: 0.38, 2: 0.38, 3: 0.38, 4: 0.36, 5: 0.58, 6: 0.58}
_PCIE_LANES = (1, 2, 4, 8, 16)

_NVLINK = re.compile(r"nvlink(?P<generation>\d)(?P<board>sxm|rtx)?x(?P<links>\d+)")
_PCIE = re.compile(r"(?P<way>pcie|host)(?P<generation>\d)x(?P<lanes>\d+)")

_MEMORY = LinkPreset(
    name="memory", kind="PCIE", relation="PHB", nominal_bytes_per_s=_MEMORY_COPY_BYTES_PER_S, reachable=1.0,
    latency_s=_MEMORY_COPY_S, source="assumed for virtual cards, which reach each other's memory as if it were "
    "their own: one thread copying within the host's memory",
)  # fmt: skip

EXAMPLES = (
    "nvlink3x4",
    "nvlink3x12",
    "nvlink4x18",
    "nvlink5x18",
    "pcie3x16",
    "pcie4x16",
    "pcie5x16",
    "host4x16",
    "host",
    "memory",
)


def link_preset(name: str) -> LinkPreset:
    """The link called `name`: "nvlink<generation>x<links>", "pcie<generation>x<lanes>", "host..." or "memory".

    Raises:
        ConfigurationError: if the name says no link that exists.
    """
    wanted = name.strip().lower()
    if wanted == "memory":
        return _MEMORY
    if match := _NVLINK.fullmatch(wanted):
        return _nvlink(wanted, int(match["generation"]), match["board"] or "", int(match["links"]))
    if match := _PCIE.fullmatch("host4x16" if wanted == "host" else wanted):
        return _over_pcie(wanted, match["way"], int(match["generation"]), int(match["lanes"]))
    raise ConfigurationError(f"no link is called {name!r}; write for example one of: {', '.join(EXAMPLES)}")


def wire_of_signal(signal_bytes_per_s: float) -> str | None:
    """The NVLink whose links run at this rate, named as `link_preset` does but without the number of links.

    Generation 3 at 25 GB/s comes as nvlink3sxm, so that any number of links is its own. None if no NVLink fits.
    """
    for part in _NVLINK_PARTS:
        rates = (part.signal_bytes_per_s, part.per_link_bytes_per_s if part.generation == 5 else 0.0)
        if (part.generation, part.board) != (3, "") and any(abs(signal_bytes_per_s - x) < 0.005 * x for x in rates):
            return f"nvlink{part.generation}{part.board}"
    return None


def _nvlink(name: str, generation: int, board: str, links: int) -> LinkPreset:
    parts = [part for part in _NVLINK_PARTS if (part.generation, part.board) == (generation, board)]
    part = next((part for part in parts if links in part.links), None)
    if part is None:
        known = ", ".join(f"nvlink{x.generation}{x.board}x{x.links.start}..{x.links.stop - 1}" for x in _NVLINK_PARTS)
        raise ConfigurationError(f"no card has the link {name!r}; known are {known}")
    return LinkPreset(
        name=name,
        kind="NVLINK",
        relation=f"NV{links}",
        nominal_bytes_per_s=links * part.per_link_bytes_per_s,
        reachable=part.reachable,
        latency_s=_PEER_COPY_S,
        source=part.source,
    )


def _over_pcie(name: str, way: str, generation: int, lanes: int) -> LinkPreset:
    if generation not in _PCIE_LANE_BYTES_PER_S or lanes not in _PCIE_LANES:
        raise ConfigurationError(
            f"no card has the link {name!r}; PCIe generations {sorted(_PCIE_LANE_BYTES_PER_S)} are known, "
            f"with {_PCIE_LANES} lanes"
        )
    peer = way == "pcie"
    return LinkPreset(
        name=name,
        kind="PCIE" if peer else "HOST",
        relation="PHB" if peer else "HOST",
        nominal_bytes_per_s=lanes * _PCIE_LANE_BYTES_PER_S[generation],
        reachable=(_PCIE_REACHABLE if peer else _HOST_REACHABLE)[generation],
        latency_s=_PEER_COPY_S if peer else _HOST_COPY_S,
        source="PCI Express base specification; reachable part measured over sixteen lanes"
        + ("" if peer else ", peer access off (NCCL issues 1127 and 1264)"),
    )
