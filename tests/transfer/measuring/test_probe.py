"""The proof of a way between two cards, one copy at a time."""

import pytest
import torch

import poolrt
from poolrt._C import host_driver
from poolrt.transfer.copy import copy_over
from poolrt.transfer.measuring import probe
from poolrt.transfer.measuring.leg import HungError, make_leg
from poolrt.transfer.measuring.pattern import Patterns
from poolrt.transfer.measuring.probe import prove, prove_host
from poolrt.units import KIB

SIZES = (4 * KIB, 64 * KIB)


@pytest.fixture(autouse=True)
def cards():
    poolrt.virtual(2, "1MiB")


def proving(copier, **options):
    """Proofs of copies from card 0 to card 1."""
    buffers = (torch.zeros(64 * KIB // 8, dtype=torch.int64, device=f"vcard:{card}") for card in range(2))
    return prove(make_leg(copier, "P2P", *buffers), 0, 1, Patterns(max(SIZES)), SIZES, **options)


def proofs(fault, **options):
    def copier(kind, source, target):
        copy_over(kind, source, target)
        fault(source, target)

    return list(proving(copier, **options))


def test_a_good_way_has_one_proof_per_size():
    found = proofs(lambda source, target: None)
    assert [(x.route, x.source, x.target, x.nbytes) for x in found] == [("P2P", 0, 1, nbytes) for nbytes in SIZES]
    assert all(x.good and x.nvlink_nbytes is None for x in found)


def overwritten_with(value):
    def fault(source, target):
        target.fill_(value)

    return fault


def undone(source, target):
    """Leaves what was there before, which is the complement of what should arrive."""
    target.bitwise_not_()


def swapped_words(source, target):
    target.copy_(target.roll(1))


def one_bit(source, target):
    target[-1] ^= 1 << 40


@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [(overwritten_with(0), 4000, 4096), (undone, 4096, 4096), (swapped_words, 4000, 4096), (one_bit, 1, 1)],
    ids=["zeros", "nothing copied", "other places", "one bit"],
)
def test_every_way_of_lying_is_found_at_the_first_size(fault, least, most):
    (found,) = proofs(fault)
    assert least <= found.wrong_nbytes <= most
    assert not found.good
    assert found.first_wrong is not None


def test_what_an_earlier_copy_left_behind_is_no_proof():
    """A way that drops the second copy delivers what the first one brought: known content, but of another size."""
    calls = []

    def copier(kind, source, target):
        calls.append(source.nbytes)
        if len(calls) == 1:
            copy_over(kind, source, target)

    first, second = proving(copier)
    assert first.good
    assert second.wrong_nbytes == 64 * KIB


def test_an_error_is_told_by_its_first_line():
    def fail(source, target):
        raise torch.AcceleratorError("uncorrectable NVLink error\nCUDA kernel errors might be reported later")

    (found,) = proofs(fail)
    assert (found.failure, found.good) == ("uncorrectable NVLink error", False)


def test_a_copy_that_hangs_is_told_and_then_raised():
    def copier(kind, source, target):
        raise HungError("did not end within 10 s")

    told = proving(copier)
    assert next(told).failure == "did not end within 10 s"
    with pytest.raises(HungError):
        next(told)


def test_a_copy_that_does_not_end_is_given_up(monkeypatch):
    """The stream of the copy is held from the moment at which the copy comes into it."""
    monkeypatch.setattr(probe, "limit_s", lambda nbytes: 0.05)
    buffers = [torch.zeros(KIB, dtype=torch.int64, device=f"vcard:{card}") for card in range(2)]

    def copier(kind, source, target):
        host_driver().stream_hold(leg.streams[0].stream_id)
        copy_over(kind, source, target)

    leg = make_leg(copier, "P2P", *buffers)
    told = prove(leg, 0, 1, Patterns(8 * KIB), (8 * KIB,))
    try:
        assert next(told).failure == "did not end within 0 s"
        with pytest.raises(HungError):
            next(told)
    finally:
        host_driver().stream_pass(leg.streams[0].stream_id)
    torch.vcard.synchronize(1)


def test_byte_counters_are_read_around_the_largest_copies():
    sent = [0]

    def count(source, target):
        sent[0] += source.nbytes

    found = proofs(count, sent_nbytes=lambda card: sent[0] if card == 0 else None)
    assert [x.nvlink_nbytes for x in found] == [None, 64 * KIB]
    assert sent[0] == 4 * KIB + 4 * 64 * KIB


def test_the_way_from_and_to_the_host_is_proven_first():
    found = prove_host(1, torch.zeros(8 * KIB, dtype=torch.int64, device="vcard:1"), Patterns(64 * KIB))
    assert (found.route, found.source, found.target, found.nbytes, found.good) == ("HOST", 1, 1, 64 * KIB, True)
