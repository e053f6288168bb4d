"""Outputs put together by the lanes equal those put together afterwards; what does not fit is left to `gather`."""

from __future__ import annotations

import threading

import torch

import poolrt
from poolrt.runtime.batches.assembly import Assembly
from poolrt.runtime.batches.microbatch import OutputRule, gather
from poolrt.runtime.state.trees import flatten

CONCATENATE, SAME = OutputRule("concatenate"), OutputRule("same")


def on_card(*sizes: int) -> list[torch.Tensor]:
    poolrt.virtual(cards=1, memory="8MiB")
    return [torch.randn(size, 3, device="vcard:0") for size in sizes]


def test_lanes_in_any_order_fill_their_own_rows():
    parts = on_card(2, 2, 1)
    assembly = Assembly([CONCATENATE], [2, 2, 1], torch.device("cpu"))
    threads = [threading.Thread(target=assembly.put, args=(i, flatten((parts[i],)))) for i in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(assembly.complete()[0], torch.cat([part.cpu() for part in parts]))


def test_several_rows_per_sample_and_another_dimension():
    parts = [part.t().contiguous() for part in on_card(4, 2)]  # two rows per sample, along dimension 1
    assembly = Assembly([OutputRule("concatenate", dim=1)], [2, 1], torch.device("cpu"))
    for index, part in enumerate(parts):
        assembly.put(index, flatten((part,)))
    assert torch.equal(assembly.complete()[0], torch.cat([part.cpu() for part in parts], dim=1))


def test_an_output_that_lacks_a_part_is_not_complete():
    parts = on_card(2, 2)
    assembly = Assembly([CONCATENATE], [2, 2], torch.device("cpu"))
    assembly.put(0, flatten((parts[0],)))
    assert not assembly.complete()


def test_rows_that_are_not_per_sample_are_left_to_gather():
    parts = on_card(3, 1)  # filtered rows: their number does not follow from the samples
    assembly = Assembly([CONCATENATE], [2, 2], torch.device("cpu"))
    trees = [flatten((part,)) for part in parts]
    for index, tree in enumerate(trees):
        assembly.put(index, tree)
    assert not assembly.complete()
    (whole,) = gather(trees, [CONCATENATE], torch.device("cpu"), assembly.complete()).tensors
    assert torch.equal(whole, torch.cat([part.cpu() for part in parts]))


def test_what_is_already_there_or_the_same_for_all_is_not_copied():
    parts = on_card(2)
    assembly = Assembly([CONCATENATE], [2], torch.device("vcard:0"))
    assembly.put(0, flatten((parts[0],)))
    assert not assembly.complete()
    assembly = Assembly([SAME], [2], torch.device("cpu"))
    assembly.put(0, flatten((parts[0],)))
    assert not assembly.complete()
