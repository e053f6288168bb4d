"""Code between layers may meet tensors of several cards: "expected all tensors on the same device" cannot happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.batches.merge_rule import rule_of
from poolrt.runtime.lanes.crossing import Crossings
from poolrt.runtime.lanes.glue import Glue, pause, resume

Devices = tuple[torch.device, torch.device]


@contextmanager
def glue_on(here: torch.device | None) -> Iterator[Crossings]:
    crossings = Crossings()
    with Glue(crossings, lambda: here):
        yield crossings


def pair(devices: Devices) -> tuple[Tensor, Tensor]:
    return torch.full((2, 2), 2.0, device=devices[0]), torch.full((2, 2), 3.0, device=devices[1])


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a + b,
        lambda a, b: torch.matmul(a, b),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: F.linear(a, weight=b),
        lambda a, b: torch.stack((a.sum(), b.sum())),
        lambda a, b: torch.einsum("ij,jk->ik", a, b),
        lambda a, b: torch.add(input=a, other=b),
    ],
)
def test_tensors_of_two_cards_meet_where_the_lane_is(operation: Callable, devices: Devices) -> None:
    a, b = pair(devices)
    expected = operation(a.cpu(), b.cpu())
    for here in devices:
        with glue_on(here):
            result = operation(a, b)
        assert result.device == here
        torch.testing.assert_close(result.cpu(), expected)


def test_without_a_lane_the_first_tensor_decides(devices: Devices) -> None:
    a, b = pair(devices)
    with glue_on(None):
        assert (b + a).device == devices[1]
        assert torch.add(input=a, other=b).device == devices[0]


def test_labels_on_another_card_and_logits(devices: Devices) -> None:
    logits = torch.randn(4, 5, device=devices[1], requires_grad=True)
    labels = torch.tensor([1, 2, -100, 4], device=devices[0])
    with glue_on(devices[1]):
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    torch.testing.assert_close(loss.cpu(), F.cross_entropy(logits.detach().cpu(), labels.cpu()))
    assert logits.grad.device == devices[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: a.add_(b),
        lambda a, b: a.__iadd__(b),
        lambda a, b: a.__setitem__((slice(None), 0), b[:, 0]),
        lambda a, b: a.masked_fill_(b > 0, 7.0),
        lambda a, b: torch.add(a, b, out=a),
        lambda a, b: a.copy_(b),
        lambda a, b: a.index_add_(0, torch.tensor([0, 1], device=b.device), b),
    ],
)
def test_a_change_in_place_happens_where_the_tensor_is(change: Callable, devices: Devices) -> None:
    a, b = pair(devices)
    expected = a.cpu().clone()
    change(expected, b.cpu())
    for here in devices:
        changed = a.clone()
        with glue_on(here):
            change(changed, b)
        assert changed.device == devices[0]
        assert torch.equal(changed.cpu(), expected)


def test_scalars_on_the_host(devices: Devices) -> None:
    """One card that is the CPU would take them everywhere; a real card would not take all of them."""
    a, _ = pair(devices)
    with glue_on(devices[0]):
        total = torch.zeros(())
        total += a.sum()
        assert (a * torch.tensor(2.0)).device == devices[0]
        stacked = torch.stack([torch.tensor(1.0), a.sum()])
    assert total.item() == 8.0
    assert stacked.tolist() == [1.0, 8.0]


def test_moving_is_left_to_the_user(devices: Devices) -> None:
    a, b = pair(devices)
    with glue_on(devices[1]) as crossings:
        assert a.to(devices[1]).device == devices[1]
        assert a.cpu().device.type == "cpu"
        assert a.type_as(b).device == devices[1]
        assert crossings.copied_tensors == 0


def test_lengths_for_packing_stay_on_the_host(devices: Devices) -> None:
    sequences = torch.arange(6.0, device=devices[0]).view(3, 2, 1)
    with glue_on(devices[0]):
        packed = nn.utils.rnn.pack_padded_sequence(sequences, torch.tensor([3, 1]))
        padded, lengths = nn.utils.rnn.pad_packed_sequence(packed)
    assert padded.device == devices[0]
    assert lengths.tolist() == [3, 1]


def test_what_crosses_in_glue_crosses_once(devices: Devices) -> None:
    a, b = pair(devices)
    with glue_on(devices[1]) as crossings:
        for _ in range(3):
            b = b + a
        assert crossings.copied_tensors == 1


def test_gradients_flow_back_to_both_cards(devices: Devices) -> None:
    a, b = (tensor.requires_grad_() for tensor in pair(devices))
    with glue_on(devices[1]):
        (a * b).sum().backward()
    assert a.grad.device == devices[0]
    assert a.grad[0, 0] == 3.0
    assert b.grad[0, 0] == 2.0


def test_scalars_are_told_how_they_were_made(devices: Devices) -> None:
    a, b = pair(devices)
    with glue_on(devices[1]):
        assert rule_of((a + b).mean()) is not None
    assert rule_of((a.cpu() + b.cpu()).mean()) is None


def test_paused_glue_sees_nothing(devices: Devices) -> None:
    a, b = pair(devices)
    glue = Glue(Crossings(), lambda: devices[0])
    with glue:
        assert pause(glue)
        assert rule_of(a.sum()) is None
        with pytest.raises(RuntimeError, match="same device"):
            a + b
        assert not pause(glue)
        resume(glue)
        assert (a + b).device == devices[0]


def test_glue_is_not_paused_from_under_a_users_mode(devices: Devices) -> None:
    glue = Glue(Crossings(), lambda: devices[0])
    with glue, torch.device("cpu"):
        assert not pause(glue)
    with glue:
        assert pause(glue)
        resume(glue)
