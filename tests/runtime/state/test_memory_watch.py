"""Bytes that operations bring into being, to the byte, in multiples of the allocators' granule."""

from __future__ import annotations

import torch

from poolrt.runtime.state.memory_watch import GRANULE, MemoryWatch, SavedBytes, granular

KIB = 1024


def kib(count: int) -> torch.Tensor:
    return torch.ones(count * KIB // 4)


def test_sizes_as_allocators_count_them() -> None:
    assert [granular(nbytes) for nbytes in (0, 1, 512, 513, 1024)] == [0, 512, 512, 1024, 1024]
    assert GRANULE == 512


def test_a_scripted_sequence() -> None:
    watch = MemoryWatch()
    with watch:
        a = kib(4)
        assert watch.live_nbytes() == 4 * KIB
        b = a * 2
        assert watch.live_nbytes() == 8 * KIB
        del a
        assert watch.live_nbytes() == 4 * KIB
        b = b + 1
        assert watch.live_nbytes() == 4 * KIB
        assert watch.peak == 8 * KIB


def test_a_mark_starts_a_new_peak() -> None:
    watch = MemoryWatch()
    with watch:
        kept = kib(4)
        (kept * 2).sum()
        assert watch.peak > 8 * KIB
        assert watch.mark() == 4 * KIB
        assert watch.peak == 4 * KIB
        torch.zeros(3 * KIB // 4)
        assert watch.peak == 7 * KIB


def test_views_and_changes_in_place_take_nothing() -> None:
    watch = MemoryWatch()
    with watch:
        a = kib(4)
        a.view(2, -1).t()[0].add_(1)
        a.relu_()
        assert watch.peak == 4 * KIB


def test_a_view_keeps_its_memory_alive() -> None:
    watch = MemoryWatch()
    with watch:
        view = kib(4)[:1]
        assert watch.live_nbytes() == 4 * KIB
        del view
        assert watch.live_nbytes() == 0


def test_memory_from_outside_is_not_counted_nor_are_its_views() -> None:
    weight, buffer = kib(8), kib(8)
    watch = MemoryWatch()
    with watch:
        weight.view(-1)
        weight.add_(1)
        torch.add(weight, 1, out=buffer)
        assert watch.live_nbytes() == 0
        product = weight * 2
        assert watch.live_nbytes() == 8 * KIB
        del product


def test_several_results_of_one_operation() -> None:
    watch = MemoryWatch()
    with watch:
        values, indices = kib(4).view(4, -1).max(dim=0)
        del values
        assert watch.live_nbytes() == granular(256 * 8)
        del indices


def test_backward_is_watched_too() -> None:
    x = torch.ones(KIB, requires_grad=True)
    watch = MemoryWatch()
    with watch, torch.autograd.set_multithreading_enabled(False):
        loss = (x * 2).sum()
        watch.mark()
        loss.backward()
        del loss
        assert watch.live_nbytes() == 4 * KIB
    assert x.grad is not None


def test_cards_are_watched_like_the_host(devices: tuple[torch.device, torch.device]) -> None:
    watch = MemoryWatch()
    before = torch.vcard.memory_allocated(devices[1])
    with watch:
        kept = [torch.ones(n, device=devices[1]) for n in (1, 100, 1000)]
        assert watch.live_nbytes() == torch.vcard.memory_allocated(devices[1]) - before
    kept.clear()


def test_saved_bytes_count_each_memory_once_and_weights_never() -> None:
    weight, activation = kib(8), kib(4)
    saved = SavedBytes({weight.untyped_storage().data_ptr()})
    for tensor in (weight, weight[:1], activation, activation.view(2, -1), activation):
        saved.count(tensor)
    assert saved.nbytes == 4 * KIB


def test_saved_bytes_count_new_memory_where_old_memory_was() -> None:
    saved = SavedBytes(set())
    for _ in range(3):
        tensor = kib(4)
        saved.count(tensor)
        del tensor
    assert saved.nbytes == 12 * KIB
