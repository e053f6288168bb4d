"""Same memory, no history, and free to be changed in place."""

from __future__ import annotations

import torch

from poolrt.runtime.lanes.sever import alias, sever


def test_an_alias_is_the_same_memory_and_no_view() -> None:
    base = torch.arange(12.0).view(3, 4)[:, 1:3]
    other = alias(base)
    assert torch.equal(other, base)
    assert other.stride() == base.stride()
    assert other.data_ptr() == base.data_ptr()
    assert not other._is_view()
    other.add_(1)
    assert base[0, 0] == 2.0


def test_a_change_of_an_alias_is_not_counted_at_the_original() -> None:
    base = torch.zeros(2)
    version = base._version
    alias(base).add_(1)
    assert base._version == version


def test_an_alias_of_what_learns_does_not_learn() -> None:
    assert not alias(torch.ones(2, requires_grad=True) * 2).requires_grad


def test_the_leaf_collects_the_gradient_and_the_history_before_it_is_cut() -> None:
    origin = torch.ones(2, requires_grad=True)
    leaf, severed = sever(origin * 3)
    assert severed.tolist() == [3.0, 3.0]
    (severed * 5).sum().backward()
    assert leaf.grad.tolist() == [5.0, 5.0]
    assert origin.grad is None


def test_what_was_severed_may_be_changed_in_place() -> None:
    leaf, severed = sever(torch.ones(2, requires_grad=True) * 3)
    severed.mul_(2).add_(1)
    severed.sum().backward()
    assert leaf.grad.tolist() == [2.0, 2.0]


def test_on_a_card(devices: tuple[torch.device, torch.device]) -> None:
    base = torch.ones(2, device=devices[1])
    held = torch.vcard.memory_allocated(devices[1])
    other = alias(base)
    assert other.device == devices[1]
    assert torch.vcard.memory_allocated(devices[1]) == held
    assert other.data_ptr() == base.data_ptr()
