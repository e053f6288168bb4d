"""What is measured of virtual cards; their faults are played by a copier that misbehaves on some pairs."""

import time
from dataclasses import replace

import pytest
import torch

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.topology import Topology
from poolrt.transfer import bounce
from poolrt.transfer.copy import copy_over
from poolrt.transfer.measuring.effort import QUICK, Effort
from poolrt.transfer.measuring.leg import HungError, limit_s, wait_within
from poolrt.transfer.measuring.measure import all_pairs, measure, routes_of
from poolrt.transfer.measuring.verdict import ALWAYS_HOST
from poolrt.units import KIB, MIB

SMALL = Effort(sizes=(1 * KIB, 64 * KIB), probe_sizes=(64 * KIB, 1 * MIB), host_probe_sizes=(64 * KIB,), repeats=2)

SOUND = ("usable", "slower")
"""no fault was found; which of the two it is depends on what else the machine does meanwhile"""


class Misbehaving:
    """copy_over, and something else on the peer route of one ordered pair."""

    def __init__(self, pair, fault):
        self.pair, self.fault = pair, fault
        self.calls = []

    def __call__(self, kind, source, target):
        pair = (source.device.index, target.device.index)
        self.calls.append((kind, pair))
        if kind == "P2P" and pair == self.pair:
            self.fault(source, target)
        else:
            copy_over(kind, source, target)


def good(source, target):
    copy_over("P2P", source, target)


def flip_a_byte(least):
    """Lies in copies of at least so many bytes, in the middle."""

    def lie(source, target):
        good(source, target)
        if source.nbytes >= least:
            target.view(torch.uint8)[source.nbytes // 2] ^= 1

    return lie


def dawdle(source, target):
    """Takes at least 10 ms, and longer for more bytes."""
    good(source, target)
    time.sleep(0.01 + source.nbytes / 2e6)


def refuse(source, target):
    raise torch.AcceleratorError("uncorrectable NVLink error\nCUDA kernel errors might be reported later")


def hang(source, target):
    raise HungError("did not end within 10 s")


@pytest.fixture
def pair():
    yield poolrt.virtual(2, "1GiB", link="nvlink3x4")
    bounce.release()


def figures(measurement):
    return {(x.route, x.source, x.target, x.direction) for x in measurement.figures}


def test_every_route_of_every_pair_is_proven_and_timed(pair):
    found = measure(pair, effort=SMALL)
    one_way = {("LOCAL", 0, 0), ("LOCAL", 1, 1), ("P2P", 0, 1), ("P2P", 1, 0), ("HOST", 0, 1), ("HOST", 1, 0)}
    both = {("P2P", 0, 1), ("HOST", 0, 1)}
    assert figures(found) == {(*x, "one way") for x in one_way} | {(*x, "both ways") for x in both}
    assert all([point.nbytes for point in x.points] == list(SMALL.sizes) for x in found.figures)
    assert [(x.source, x.target) for x in found.verdicts] == [(0, 1), (1, 0)]
    assert all(proof.good for proof in found.proofs)
    proven = [(x.route, x.source, x.target, x.nbytes) for x in found.proofs]
    assert [x for x in proven if x[0] == "P2P"] == [
        ("P2P", *way, x) for way in ((0, 1), (1, 0)) for x in SMALL.probe_sizes
    ]
    assert {x for x in proven if x[0] == "HOST"} == {
        ("HOST", 0, 0, MIB), ("HOST", 1, 1, MIB), ("HOST", 0, 1, 64 * KIB), ("HOST", 1, 0, 64 * KIB)
    }  # fmt: skip
    assert found.devices == ("vcard:0", "vcard:1")
    assert bounce.rings_nbytes() == 0


def test_one_wrong_byte_in_64_mib_is_found_and_the_peer_never_used(pair):
    copier = Misbehaving((0, 1), flip_a_byte(64 * MIB))
    found = measure(pair, effort=replace(QUICK, sizes=SMALL.sizes, repeats=1, seconds=1.0), copier=copier)
    there, back = found.verdict(0, 1), found.verdict(1, 0)
    assert (there.finding, there.choice) == ("lies", ALWAYS_HOST)
    assert back.finding in SOUND
    (lie,) = [proof for proof in found.proofs if not proof.good]
    assert (lie.source, lie.target, lie.nbytes) == (0, 1, 64 * MIB)
    assert (lie.wrong_nbytes, lie.first_wrong) == (1, 32 * MIB)
    assert ("P2P", 0, 1, "one way") not in figures(found)
    assert ("P2P", 0, 1, "both ways") not in figures(found)
    assert ("P2P", 1, 0, "one way") in figures(found)


@pytest.mark.parametrize(
    ("fault", "finding", "said"),
    [
        (dawdle, "slower", "through the host"),
        (refuse, "fails", "uncorrectable NVLink error"),
        (flip_a_byte(0), "lies", "1 byte was wrong"),
        (lambda source, target: None, "lies", "bytes were wrong"),
        (hang, "fails", "did not end within 10 s"),
    ],
    ids=["slow", "fails", "lies", "delivers nothing", "hangs"],
)
def test_a_bad_peer_is_routed_around(pair, fault, finding, said):
    found = measure(pair, effort=SMALL, copier=Misbehaving((1, 0), fault))
    verdict = found.verdict(1, 0)
    assert (verdict.finding, verdict.choice) == (finding, ALWAYS_HOST)
    assert said in verdict.sentence
    assert verdict.sentence.startswith("card 1 to card 0: ")
    assert "\n" not in verdict.sentence


def test_a_route_that_breaks_while_it_is_timed_is_not_used(pair):
    def break_later(source, target):
        if source.nbytes == SMALL.sizes[0]:
            refuse(source, target)
        good(source, target)

    found = measure(pair, effort=SMALL, copier=Misbehaving((0, 1), break_later))
    assert found.verdict(0, 1).finding == "fails"
    assert found.verdict(1, 0).finding in SOUND


def test_cards_of_a_copy_that_hung_are_not_touched_again():
    topology = poolrt.virtual(3, "64MiB", link="nvlink3x4")
    copier = Misbehaving((0, 1), hang)
    found = measure(topology, effort=SMALL, copier=copier)
    after = copier.calls[copier.calls.index(("P2P", (0, 1))) + 1 :]
    assert after
    assert not {("P2P", (0, 1)), ("P2P", (1, 0)), ("P2P", (0, 2)), ("HOST", (1, 2))} & set(after)
    assert {x.finding for x in found.verdicts} == {"fails"}  # every pair has a card that hung


def test_a_distrusted_pair_is_not_touched(pair):
    copier = Misbehaving((0, 1), good)
    tried = []
    found = measure(pair, effort=SMALL, distrusted=[(0, 1)], before_proof=tried.append, copier=copier)
    assert ("P2P", (0, 1)) not in copier.calls
    assert tried == [(1, 0)]
    assert found.verdict(0, 1).finding == "fails"
    assert found.verdict(1, 0).finding in SOUND
    assert "did not live" in found.verdict(0, 1).sentence


def test_each_pair_is_told_before_its_peer_route_is_used(pair):
    copier = Misbehaving((0, 1), good)
    told = []
    measure(pair, effort=SMALL, before_proof=lambda way: told.append((way, list(copier.calls))), copier=copier)
    assert [way for way, _ in told] == [(0, 1), (1, 0)]
    assert all(("P2P", way) not in calls for way, calls in told)


def test_large_copies_are_left_out_when_time_is_short(pair):
    effort = replace(SMALL, sizes=tuple(KIB << shift for shift in range(8)), seconds=0.05)
    found = measure(pair, effort=effort, pairs=[(0, 1)], copier=Misbehaving((0, 1), dawdle))
    points = found.of_route("P2P", 0, 1, "one way").points
    assert 2 <= len(points) < 8
    assert points[0].nbytes == KIB


def test_one_direction_alone_can_be_asked_for(pair):
    found = measure(pair, effort=SMALL, pairs=[(1, 0)])
    assert figures(found) == {("P2P", 1, 0, "one way"), ("HOST", 1, 0, "one way")}


def test_a_pair_whose_way_back_lies_is_not_timed_both_ways(pair):
    found = measure(pair, effort=SMALL, pairs=[(1, 0), (0, 1)], copier=Misbehaving((1, 0), flip_a_byte(0)))
    assert {x for x in figures(found) if x[0] == "P2P"} == {("P2P", 0, 1, "one way")}


def test_small_cards_are_measured_with_small_copies():
    topology = poolrt.virtual(2, "2MiB", link="nvlink3x4")
    found = measure(topology, effort=SMALL)
    assert max(proof.nbytes for proof in found.proofs) == 256 * KIB  # where 1 MiB was wanted
    torch.vcard.set_capacity(1, 4 * KIB)
    with pytest.raises(ConfigurationError, match="4 KiB free"):
        measure(topology, effort=SMALL)


def test_cards_without_a_peer_route_are_measured_through_the_host():
    found = measure(poolrt.virtual(2, "64MiB", link="host"), effort=SMALL)
    assert {route for route, *_ in figures(found)} == {"LOCAL", "HOST"}
    assert found.verdicts == ()
    assert found.bytes_per_s(0, 1) == found.of_route("HOST", 0, 1, "one way").reached_bytes_per_s


def test_shares_of_one_gpu_are_no_peers():
    """A copy within one GPU is never taken for one between two."""
    shares = logical_topology("cuda:0", [MIB, MIB, MIB])
    assert all_pairs(shares) == [(0, 0)]
    assert routes_of(shares, 0, 1) == ("LOCAL",)
    two = virtual_topology([MIB] * 2)
    assert all_pairs(two) == [(0, 0), (1, 1), (0, 1), (1, 0)]
    mixed = Topology(cards=(*shares.cards[:2], replace(two.cards[0], index=2, device="cuda:1")))
    assert all_pairs(mixed) == [(0, 0), (2, 2), (0, 2), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    "change",
    [{"sizes": ()}, {"sizes": (12,)}, {"sizes": (16, 8)}, {"repeats": 0}, {"seconds": 0}, {"probe_sizes": (4,)}],
)
def test_impossible_efforts_are_refused(change):
    with pytest.raises(ConfigurationError):
        replace(SMALL, **change)


def test_a_card_that_is_not_there_is_refused(pair):
    with pytest.raises(ConfigurationError, match="no card 7"):
        measure(pair, effort=SMALL, pairs=[(0, 7)])


class Never:
    """An event that does not pass."""

    def query(self):
        return False


def test_waiting_has_an_end():
    with pytest.raises(HungError, match="within 0 s"):
        wait_within([Never()], 0.01)
    assert limit_s(0) < limit_s(64 * MIB) < 60
