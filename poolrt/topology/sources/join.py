"""One machine out of what NVML, CUDA and the files of the system say. Pure.

NVML numbers all cards by PCI address; CUDA numbers those that CUDA_VISIBLE_DEVICES leaves, in its own order. They are
matched by UUID, else by PCI address, else by what CUDA_VISIBLE_DEVICES says, else by order:

    NVML   0: GPU-aaa   1: GPU-bbb   2: GPU-ccc            CUDA_VISIBLE_DEVICES=2,0
    CUDA   1: GPU-aaa                0: GPU-ccc
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from poolrt.topology.facts import CardFacts, DriverFacts, Machine, PairFacts
from poolrt.topology.sources.cuda import CudaCard, CudaReading
from poolrt.topology.visible import visible_cards


def join(nvml: Machine, cuda: CudaReading, visible: str | None) -> Machine:
    """NVML's machine with CUDA's numbers and answers; CUDA's cards where NVML is silent.

    Args:
        nvml: what NVML said; no cards if it did not answer.
        cuda: what CUDA said.
        visible: the value of CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    numbers = match(nvml.cards, cuda.cards, visible)
    by_number = {numbers[card.index]: card for card in cuda.cards if card.index in numbers}
    known = [_with_cuda(card, by_number.get(card.index)) for card in nvml.cards]
    first_free = max((card.index for card in nvml.cards), default=-1) + 1
    unmatched = [card for card in cuda.cards if card.index not in numbers]
    added = [_from_cuda(card, first_free + at) for at, card in enumerate(unmatched)]
    cards = (*known, *added)
    return replace(nvml, cards=cards, pairs=_pairs(nvml, cards, cuda.peers), driver=_driver(nvml, cuda))


def match(nvml: tuple[CardFacts, ...], cuda: tuple[CudaCard, ...], visible: str | None) -> dict[int, int]:
    """CUDA's number -> NVML's number, for the cards that both know."""
    by_uuid = {card.uuid: card.index for card in nvml if card.uuid}
    by_bus = {card.bus_id: card.index for card in nvml if card.bus_id}
    found: dict[int, int] = {}
    for card in cuda:
        number = by_uuid.get(card.uuid) if card.uuid else by_bus.get(card.bus_id) if card.bus_id else None
        if number is not None:
            found[card.index] = number
    if found or any(card.uuid or card.bus_id for card in cuda):
        return found
    order = visible_cards(visible, [card.uuid for card in nvml])
    fits = len(order) == len(cuda) and all(nvml[at].name == card.name for at, card in zip(order, cuda, strict=True))
    return {card.index: nvml[at].index for at, card in zip(order, cuda, strict=True)} if fits else {}


def _with_cuda(card: CardFacts, cuda: CudaCard | None) -> CardFacts:
    """What CUDA says about the memory counts: it is what this process can have."""
    if cuda is None:
        return card
    return replace(
        card,
        cuda_index=cuda.index,
        name=card.name or cuda.name,
        uuid=card.uuid or cuda.uuid,
        bus_id=card.bus_id or cuda.bus_id,
        memory_bytes=cuda.memory_bytes,
        compute_capability=card.compute_capability or cuda.compute_capability,
        mapped_memory=cuda.mapped_memory,
    )


def _from_cuda(cuda: CudaCard, index: int) -> CardFacts:
    return _with_cuda(CardFacts(index=index), cuda)


def _pairs(nvml: Machine, cards: tuple[CardFacts, ...], peers: Mapping[tuple[int, int], bool]) -> tuple[PairFacts, ...]:
    number = {card.cuda_index: card.index for card in cards if card.cuda_index is not None}
    answers = {(number[x], number[y]): answer for (x, y), answer in peers.items() if x in number and y in number}
    known = {(pair.source, pair.target) for pair in nvml.pairs}
    return (
        *(replace(pair, can_access=answers.get((pair.source, pair.target))) for pair in nvml.pairs),
        *(
            PairFacts(source=x, target=y, can_access=answer)
            for (x, y), answer in answers.items()
            if (x, y) not in known
        ),
    )


def _driver(nvml: Machine, cuda: CudaReading) -> DriverFacts:
    return replace(
        nvml.driver,
        loaded=nvml.driver.loaded or bool(cuda.cards) or None,
        cuda_version=nvml.driver.cuda_version or cuda.version,
        cuda_error=cuda.error,
    )
