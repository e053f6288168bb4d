import pytest

from poolrt.transfer.measuring.figures import Line
from poolrt.transfer.measuring.verdict import ALWAYS_HOST, Proof, judge
from poolrt.units import MIB

PEER, HOST = Line(latency_s=7e-6, bytes_per_s=50.9e9), Line(latency_s=20e-6, bytes_per_s=11e9)
WEAK = Line(latency_s=25e-6, bytes_per_s=1.2e9)


def proof(nbytes=MIB, **facts):
    return Proof(route="P2P", source=0, target=1, nbytes=nbytes, **facts)


GOOD = [proof(1 * MIB), proof(64 * MIB)]


def test_a_pair_that_is_proven_and_fast_is_used():
    verdict = judge(GOOD, {"P2P": PEER, "HOST": HOST}, 0, 1)
    assert (verdict.finding, verdict.usable, verdict.choice) == ("usable", True, ((0, "P2P"),))
    assert verdict.sentence == ("card 0 to card 1: peer copies of up to 64 MiB arrive as written and reach 50.9 GB/s")


def test_one_wrong_byte_is_enough_never_to_use_it():
    lie = proof(64 * MIB, wrong_nbytes=1, first_wrong=33_554_433)
    verdict = judge([*GOOD, lie], {"P2P": PEER, "HOST": HOST}, 0, 1)
    assert (verdict.finding, verdict.usable, verdict.choice) == ("lies", False, ALWAYS_HOST)
    assert "64 MiB" in verdict.sentence
    assert "1 byte was wrong, the first at 33554433" in verdict.sentence
    assert "through the host" in verdict.sentence


def test_a_copy_that_fails_is_named_with_its_error():
    verdict = judge([GOOD[0], proof(failure="NVLink: uncorrectable")], {"P2P": PEER, "HOST": HOST}, 0, 1)
    assert (verdict.finding, verdict.choice) == ("fails", ALWAYS_HOST)
    assert "NVLink: uncorrectable" in verdict.sentence


def test_a_failure_counts_before_a_lie():
    both = [proof(wrong_nbytes=8, first_wrong=0), proof(failure="lost")]
    assert judge(both, {}, 0, 1).finding == "fails"


@pytest.mark.parametrize("host", [HOST, WEAK], ids=["much", "a little"])
def test_a_pair_slower_than_the_host_goes_round_it(host):
    slow = Line(latency_s=host.latency_s + 1e-6, bytes_per_s=host.bytes_per_s * 0.99)
    verdict = judge(GOOD, {"P2P": slow, "HOST": host}, 0, 1)
    assert (verdict.finding, verdict.choice) == ("slower", ALWAYS_HOST)
    assert f"{slow.bytes_per_s / 1e9:.3g} GB/s" in verdict.sentence
    assert f"{host.bytes_per_s / 1e9:.3g} GB/s" in verdict.sentence


def test_a_pair_that_is_good_for_short_copies_only_is_used_for_those():
    verdict = judge(GOOD, {"P2P": Line(latency_s=5e-6, bytes_per_s=5e9), "HOST": HOST}, 0, 1)
    assert verdict.finding == "usable"
    assert [kind for _, kind in verdict.choice] == ["P2P", "HOST"]
    assert "the host is faster from" in verdict.sentence


def test_short_copies_through_the_host_are_told_too():
    verdict = judge(GOOD, {"P2P": PEER, "HOST": Line(latency_s=1e-6, bytes_per_s=11e9)}, 0, 1)
    assert [kind for _, kind in verdict.choice] == ["HOST", "P2P"]
    assert "the host is faster up to" in verdict.sentence


def test_what_was_never_checked_is_never_used():
    verdict = judge([], {"P2P": PEER, "HOST": HOST}, 0, 1)
    assert (verdict.finding, verdict.choice) == ("fails", ALWAYS_HOST)


def test_what_was_checked_but_not_timed_is_used():
    assert judge(GOOD, {}, 0, 1).choice == ((0, "P2P"),)
