"""NVLinks and pairs of cards as NVML tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from poolrt.topology.facts import CardFacts, NvlinkPort, PairFacts, RemoteKind
from poolrt.topology.sources.asking import Asker

# nvmlGpuP2PCapsIndex_t. The package's own NVML_P2P_CAPS_INDEX_READ is a tuple by a slip of the pen: plain numbers here.
_CAPABILITIES = {"read": 0, "write": 1, "nvlink": 2, "atomics": 3, "pcie": 4}
_STATUSES = ("OK", "CNS", "GNS", "TNS", "DR", "NS", "U")
_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_REMOTE_KINDS: dict[int, RemoteKind] = {0: "GPU", 1: "OTHER", 2: "SWITCH", 255: "UNKNOWN"}
# Field values that count errors of one link, by generation of cards; 0..3 are the counters of older calls.
_OLD_COUNTERS = range(4)
_HOPPER_COUNTERS = ("NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY", "NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY",
                    "NVML_FI_DEV_NVLINK_ERROR_DL_CRC")  # fmt: skip
_BLACKWELL_COUNTERS = ("NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS", "NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS")
_SPEEDS = (*(f"NVML_FI_DEV_NVLINK_SPEED_MBPS_L{link}" for link in range(12)),)


def read_ports(ask: Asker, handle: Any) -> tuple[NvlinkPort, ...]:
    """The NVLinks of a card; empty if it has none. Asked until the driver says that there is no such link."""
    ports = []
    for link in range(ask.constant("NVML_NVLINK_MAX_LINKS") or 36):
        state = ask("DeviceGetNvLinkState", handle, link)
        if state is None:
            break
        ports.append(_port(ask, handle, link, bool(state)))
    return tuple(ports)


def read_pairs(ask: Asker, handles: Mapping[int, Any], cards: Sequence[CardFacts]) -> tuple[PairFacts, ...]:
    """Every ordered pair of cards, with its PCIe relation, its NVLinks and what the driver says about peer access."""
    return tuple(_pair(ask, handles, source, target) for source, target in permutations(cards, 2))


def link_errors(ask: Asker, handle: Any, link: int) -> int | None:
    """Errors of one link since the driver was loaded; None if this card does not count them."""
    old = [ask("DeviceGetNvLinkErrorCounter", handle, link, counter) for counter in _OLD_COUNTERS]
    new = ask.fields(handle, *((name, link) for name in (*_HOPPER_COUNTERS, *_BLACKWELL_COUNTERS)))
    seen = [count for count in old if count is not None] or [count for count in new if count is not None]
    return sum(seen) if seen else None


def links_between(source: CardFacts, target: CardFacts) -> int | None:
    """Active links from one card to another: those whose far end is the other, or a switch that both hang on."""
    if source.nvlinks is None or target.nvlinks is None:
        return None
    direct = sum(port.active and port.remote_bus_id == target.bus_id is not None for port in source.nvlinks)
    return direct or min(_switch_links(source), _switch_links(target))


def _switch_links(card: CardFacts) -> int:
    """Links to switches. Virtual machines hide switches, whose links then lead to UNKNOWN."""
    return sum(port.active and port.remote in ("SWITCH", "UNKNOWN") for port in card.nvlinks or ())


def _port(ask: Asker, handle: Any, link: int, active: bool) -> NvlinkPort:
    remote = ask("DeviceGetNvLinkRemotePciInfo", handle, link) if active else None
    kind = ask("DeviceGetNvLinkRemoteDeviceType", handle, link) if active else None
    return NvlinkPort(
        index=link,
        active=active,
        signal_bytes_per_s=_speed(ask, handle, link) if active else None,
        remote=None if kind is None else _REMOTE_KINDS.get(kind, "OTHER"),
        remote_bus_id=f"{remote.domain:04x}:{remote.bus:02x}:{remote.device:02x}.0" if remote else None,
        errors=link_errors(ask, handle, link) if active else None,
    )


def _speed(ask: Asker, handle: Any, link: int) -> float | None:
    """Bytes per second of one link. New cards answer one field per scope, old ones a field per link, both in MB/s."""
    (speed,) = ask.fields(handle, ("NVML_FI_DEV_NVLINK_GET_SPEED", link))
    if not speed and link < len(_SPEEDS):
        (speed,) = ask.fields(handle, (_SPEEDS[link], 0))
    return speed * 1e6 if speed else None


def _pair(ask: Asker, handles: Mapping[int, Any], source: CardFacts, target: CardFacts) -> PairFacts:
    ends = handles[source.index], handles[target.index]
    links = links_between(source, target)
    ancestor = _ANCESTORS.get(ask("DeviceGetTopologyCommonAncestor", *ends))
    statuses = {name: ask("DeviceGetP2PStatus", *ends, number) for name, number in _CAPABILITIES.items()}
    return PairFacts(
        source=source.index,
        target=target.index,
        relation=f"NV{links}" if links else ancestor,
        pcie_relation=ancestor,
        nvlinks=links,
        peer_status={name: _STATUSES[min(x, 6)] for name, x in statuses.items() if x is not None},
    )
