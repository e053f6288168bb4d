"""The copies of one step of a split model: counted by its regions, and by the links themselves.

Batches come from the host, and outputs go back there, past the links between the cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
import torch
import zoo
from torch import nn

import poolrt
from poolrt.topology.topology import Topology
from poolrt.transfer import routes
from poolrt.transfer.collectives.known import KnownCopies
from poolrt.virtual_cards.links import carried, clear_faults, clear_links, is_up, set_fault, set_link

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_links_left() -> Iterator[None]:
    yield
    clear_links()
    clear_faults()
    routes.current().forget("vcard")


def cards(count: int) -> Topology:
    return poolrt.virtual(cards=count, memory="64MiB")


def slow_down(count: int) -> None:
    torch.vcard.reset_hazards()
    for number, (source, target) in enumerate(permutations(range(count), 2)):
        set_link(source, target, bytes_per_s=20e6 * (1 + number), latency_s=1e-4)


def carried_by_all(count: int) -> tuple[int, int]:
    """(copies, bytes) over the links between the cards so far."""
    found = [carried(*pair) for pair in permutations(range(count), 2)]
    return sum(copies for copies, _ in found), sum(nbytes for _, nbytes in found)


MODELS = {"bert": zoo.bert, "llama": zoo.llama, "gpt2": zoo.gpt2, "t5": zoo.t5}


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(1)
    ids = torch.randint(1, zoo.VOCABULARY, (4, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["attention_mask"][0, :2] = 0
    return MODELS[name](), batch


@pytest.mark.parametrize("slow", [False, True], ids=["copies are immediate", "copies are on their way"])
@pytest.mark.parametrize(("name", "count"), [("bert", 2), ("llama", 2), ("gpt2", 3), ("t5", 2)])
def test_what_is_counted_is_what_the_links_have_carried(name: str, count: int, slow: bool):
    model, batch = built(name)
    poolrt.shard(model, topology=cards(count), sample=batch, tensor_parallel=count)
    assert poolrt.report(model).measured_crossings is None
    if slow:
        slow_down(count)
    for _ in range(2):
        before = carried_by_all(count)
        loss = model(**batch).loss
        loss.backward()
        after = carried_by_all(count)
        report = poolrt.report(model)
        found = report.measured_crossings, report.measured_crossed_bytes
        assert found == (after[0] - before[0], after[1] - before[1])
    assert not slow or torch.vcard.hazards() == []


LAYERS = 4
READ_BY_EVERY_LAYER = 4
"""mask, positions, cosines and sines"""


def test_llama_sends_masks_and_tables_once(monkeypatch: pytest.MonkeyPatch):
    """Between two cards, there and back:

    forward     ids, mask, positions, cos, sin, 2 x layers hidden, head's hidden, targets, largest logits
                embedding's rows, 2 x layers outputs, largest logits, two numbers of each row for the loss
    backward    all of these that have gradients, the other way
    """
    forward_there, forward_back = 5 + 2 * LAYERS + 1 + 2, 1 + 2 * LAYERS + 1 + 2
    backward_there, backward_back = 1 + 2 * LAYERS + 2, 2 * LAYERS + 1
    counts = []
    for shared in (True, False):
        model, batch = built("llama")
        poolrt.shard(model, topology=cards(2), sample=batch, tensor_parallel=2)
        if not shared:
            monkeypatch.setattr(KnownCopies, "find", lambda known, tensor: None)
        before = carried(0, 1)[0], carried(1, 0)[0]
        loss = model(**batch).loss
        between = carried(0, 1)[0], carried(1, 0)[0]
        loss.backward()
        after = carried(0, 1)[0], carried(1, 0)[0]
        counts.append([b - a for a, b in zip((*before, *between), (*between, *after), strict=True)])
    assert counts[0] == [forward_there, forward_back, backward_there, backward_back]
    again = (LAYERS - 1) * READ_BY_EVERY_LAYER
    assert counts[1] == [forward_there + again, forward_back, backward_there, backward_back]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_stages_of_several_cards_count_both(micro_batches: int):
    """What lanes move from stage to stage, and what the cards of a stage exchange; not what the model's code moves."""
    model, batch = built("llama")
    batch["use_cache"] = False  # it would be an output, put together from all cards
    by_its_loss = batch["labels"].to(torch.int64).nbytes
    stages = [[0, 1], [2, 3]]
    poolrt.shard(
        model, topology=cards(4), sample=batch, tensor_parallel=stages, micro_batches=micro_batches, schedule="gpipe"
    )
    for _ in range(2):
        before = carried_by_all(4)
        model(**batch).loss.backward()
        after = carried_by_all(4)
    report = poolrt.report(model)
    found = report.measured_crossings + micro_batches, report.measured_crossed_bytes + by_its_loss
    assert found == (after[0] - before[0], after[1] - before[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_sends_again_what_it_repeats(reentrant: bool):
    counts, gradients = [], []
    for checkpoints in (False, True):
        model, batch = built("gpt2")
        poolrt.shard(model, topology=cards(2), sample=batch, tensor_parallel=2)
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        slow_down(2)
        before = carried_by_all(2)
        model.train()(**batch).loss.backward()
        after = carried_by_all(2)
        clear_links()
        report = poolrt.report(model)
        assert report.measured_crossings == after[0] - before[0]
        counts.append(after[0] - before[0])
        gradients.append([parameter.grad.cpu() for parameter in model.parameters()])
    assert counts[1] > counts[0]
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_copies_end_with_the_forward():
    model, batch = built("llama")
    poolrt.shard(model, topology=cards(2), sample=batch, tensor_parallel=2)
    with torch.no_grad():
        model(**batch)
        used = torch.vcard.memory_allocated(1)
        output = model(**batch, use_cache=False)
        assert torch.vcard.memory_allocated(1) == used
    del output


@pytest.mark.parametrize(("name", "count"), [("bert", 2), ("t5", 2), ("llama", 3)])
def test_slow_links_change_no_bit_of_two_steps(name: str, count: int):
    """Copies are immediate, or take their time over links of unequal speed; one of those dies in the second step."""
    found = []
    for slow in (False, True):
        model, batch = built(name)
        poolrt.shard(model, topology=cards(count), sample=batch, tensor_parallel=count)
        if slow:
            slow_down(count)
        losses = []
        for step in range(2):
            if slow and step == 1:
                set_fault(0, 1, "dies", after_copies=3)
            losses.append(model(**batch).loss)
            losses[-1].backward()
        clear_links()
        for card in range(count):
            torch.vcard.synchronize(card)
        assert not slow or torch.vcard.hazards() == []
        assert is_up(0, 1) is not slow
        clear_faults()
        found.append([loss.detach() for loss in losses] + [parameter.grad.cpu() for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
