from dataclasses import replace

import pytest

from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.discover import Sources
from poolrt.topology.identity import Identity, identify
from poolrt.topology.topology import Topology

GIB = 1 << 30


class Uuids:
    """A CudaIdentity of cards with these UUIDs."""

    def __init__(self, *uuids):
        self.uuids = uuids

    def uuid(self, card):
        return self.uuids[card]

    def bus_id(self, card):
        return None

    def attribute(self, card, number):
        return None


class Files(dict):
    """A FileSource of a few texts; nothing else of it is asked."""

    def text(self, path):
        return self.get(path)


FILES = Files({"/proc/sys/kernel/random/boot_id": "1111-2222", "/sys/module/nvidia/version": "550.54.14"})
SOURCES = Sources(identity=Uuids("GPU-aa", "GPU-bb"), files=FILES)


def cuda(*ordinals):
    cards = virtual_topology([GIB] * len(ordinals)).cards
    return Topology(
        cards=tuple(
            replace(card, kind="cuda", device=f"cuda:{ordinal}") for card, ordinal in zip(cards, ordinals, strict=True)
        )
    )


def test_gpus_are_told_by_uuid_driver_and_start_of_the_machine():
    assert identify(cuda(1, 0), SOURCES) == Identity(cards=("GPU-bb", "GPU-aa"), driver="550.54.14", boot="1111-2222")


def test_an_older_place_of_the_driver_s_version_will_do():
    files = Files({"/proc/sys/kernel/random/boot_id": "1111-2222", "/proc/driver/nvidia/version": "NVRM version: 470"})
    found = identify(cuda(0), Sources(identity=Uuids("GPU-aa"), files=files))
    assert found is not None
    assert found.driver == "NVRM version: 470"


@pytest.mark.parametrize(
    "sources",
    [
        replace(SOURCES, identity=None),
        replace(SOURCES, files=None),
        replace(SOURCES, identity=Uuids("GPU-aa", None)),
        replace(SOURCES, files=Files()),
    ],
    ids=["no CUDA", "no files", "no UUID", "no version"],
)
def test_what_cannot_be_told_for_certain_is_not_told(sources):
    assert identify(cuda(0, 1), sources) is None


def test_shares_of_one_gpu_are_that_gpu():
    found = identify(logical_topology("cuda:1", [GIB, GIB]), SOURCES)
    assert found is not None
    assert found.cards == ("GPU-bb", "GPU-bb")


def test_virtual_cards_are_told_by_their_models():
    fast, slow = (virtual_topology([GIB, GIB], link) for link in ("nvlink3x4", "pcie3x8"))
    assert identify(fast) == identify(virtual_topology([GIB, GIB], "nvlink3x4"))
    assert identify(fast) != identify(slow)
    found = identify(fast)
    assert found is not None
    assert found.virtual


def test_recorded_cards_are_nobody():
    recorded = Topology(cards=tuple(replace(card, kind="recorded") for card in virtual_topology([GIB]).cards))
    assert identify(recorded, SOURCES) is None
    assert identify(Topology(cards=()), SOURCES) is None
