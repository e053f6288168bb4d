"""NVML knows all cards by PCI address, CUDA those that are visible in its own order: who is who?"""

import pytest

from poolrt.topology.facts import CardFacts, Machine, PairFacts
from poolrt.topology.sources.cuda import CudaCard, CudaReading
from poolrt.topology.sources.join import join, match

UUIDS = ("GPU-aa", "GPU-bb", "GPU-cc")
NVML = tuple(CardFacts(index=at, uuid=uuid, bus_id=f"0000:0{at}:00.0", name="A") for at, uuid in enumerate(UUIDS))


def cuda_card(index, uuid=None, bus_id=None, name="A"):
    return CudaCard(index=index, name=name, memory_bytes=100 + index, uuid=uuid, bus_id=bus_id,
                    compute_capability=(8, 6), mapped_memory=True)  # fmt: skip


@pytest.mark.parametrize(
    ("cuda", "visible", "matched"),
    [
        ((cuda_card(0, "GPU-cc"), cuda_card(1, "GPU-aa")), None, {0: 2, 1: 0}),
        ((cuda_card(0, None, "0000:01:00.0"),), None, {0: 1}),
        ((cuda_card(0, "GPU-xx"),), None, {}),
        ((cuda_card(0), cuda_card(1)), "2,0", {0: 2, 1: 0}),
        ((cuda_card(0), cuda_card(1)), "GPU-cc,GPU-b", {0: 2, 1: 1}),
        ((cuda_card(0), cuda_card(1), cuda_card(2)), None, {0: 0, 1: 1, 2: 2}),
        ((cuda_card(0, name="B"), cuda_card(1), cuda_card(2)), None, {}),  # CUDA orders unequal cards by speed
        ((cuda_card(0),), "0,1", {}),
        ((), "", {}),
    ],
    ids=["uuid", "address", "unknown uuid", "numbers", "uuids in the variable", "order", "names", "counts", "none"],
)  # fmt: skip
def test_cards_are_matched(cuda, visible, matched):
    assert match(NVML, cuda, visible) == matched


def test_cuda_s_answers_are_told_in_nvml_s_numbers():
    pairs = (PairFacts(source=2, target=0, relation="PIX"), PairFacts(source=1, target=0, relation="SYS"))
    reading = CudaReading(
        cards=(cuda_card(0, "GPU-cc"), cuda_card(1, "GPU-aa")), peers={(0, 1): True, (1, 0): False}, version=(12, 4)
    )
    machine = join(Machine(cards=NVML, pairs=pairs), reading, None)
    assert [card.cuda_index for card in machine.cards] == [1, None, 0]
    assert machine.cards[2].memory_bytes == 100
    assert machine.cards[2].mapped_memory is True
    assert (machine.pair(2, 0).relation, machine.pair(2, 0).can_access) == ("PIX", True)
    assert machine.pair(0, 2).can_access is False
    assert machine.pair(1, 0).can_access is None
    assert machine.driver.cuda_version == (12, 4)


def test_cards_that_only_cuda_knows_are_added():
    reading = CudaReading(cards=(cuda_card(0, "GPU-xx"), cuda_card(1, "GPU-bb")), peers={(0, 1): True})
    machine = join(Machine(cards=NVML), reading, None)
    assert [(card.index, card.uuid, card.cuda_index) for card in machine.cards] == [
        (0, "GPU-aa", None),
        (1, "GPU-bb", 1),
        (2, "GPU-cc", None),
        (3, "GPU-xx", 0),
    ]
    assert machine.pair(3, 1).can_access is True


def test_without_cuda_its_error_is_kept():
    machine = join(Machine(), CudaReading(error="CUDA_ERROR_SYSTEM_NOT_READY"), None)
    assert (machine.cards, machine.driver.cuda_error, machine.driver.loaded) == (
        (),
        "CUDA_ERROR_SYSTEM_NOT_READY",
        None,
    )
