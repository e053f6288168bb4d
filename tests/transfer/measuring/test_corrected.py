from dataclasses import replace

import pytest

from poolrt.topology.build import virtual_topology
from poolrt.topology.route import reachable_peers, route
from poolrt.transfer.measuring.corrected import corrected
from poolrt.transfer.measuring.figures import Point, figures_of
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof, judge

GIB = 1 << 30
STATED = 51.75e9


def pair_of(kind="cuda"):
    topology = virtual_topology([GIB, GIB], "nvlink3x4")
    cards = tuple(replace(card, kind=kind, device=f"{kind}:{card.index}") for card in topology.cards)
    return replace(topology, cards=cards)


def measurement(peer_bytes_per_s, wrong_nbytes=0, host=True):
    """From card 0 to card 1; the host carries 10 GB/s."""
    rates = {"P2P": peer_bytes_per_s, **({"HOST": 10e9} if host else {})}
    figures = tuple(
        figures_of([Point(nbytes=10**9, seconds=1e9 / rate)], route=kind, source=0, target=1, direction="one way")
        for kind, rate in rates.items()
    )
    proof = Proof(route="P2P", source=0, target=1, nbytes=64, wrong_nbytes=wrong_nbytes)
    verdict = judge([proof], {x.route: x.line for x in figures}, 0, 1)
    return Measurement(devices=("cuda:0", "cuda:1"), figures=figures, proofs=(proof,), verdicts=(verdict,))


@pytest.mark.parametrize("kind", ["cuda", "virtual"])
@pytest.mark.parametrize("found", [measurement(50e9, wrong_nbytes=1), measurement(5e9)], ids=["lies", "slower"])
def test_a_peer_that_is_no_good_is_no_peer_to_plan_with(kind, found):
    topology = corrected(pair_of(kind), found)
    assert route(topology, 0, 1).kind == "HOST"
    assert route(topology, 0, 1).bytes_per_s == pytest.approx(10e9)
    assert route(topology, 1, 0).kind == "P2P"
    assert reachable_peers(topology, 0) == reachable_peers(topology, 1) == []  # memory needs both directions


def test_without_a_measured_way_through_the_host_a_stated_one_counts():
    assert route(corrected(pair_of(), measurement(50e9, wrong_nbytes=1, host=False)), 0, 1).kind == "HOST"


@pytest.mark.parametrize(
    ("reached", "expected"), [(0.8 * STATED, STATED), (1.2 * STATED, STATED), (0.5 * STATED, 0.5 * STATED)]
)
def test_only_what_is_far_off_is_corrected_so_that_plans_stay_valid(reached, expected):
    topology = corrected(pair_of(), measurement(reached))
    assert topology.link(0, 1).bytes_per_s == pytest.approx(expected)
    assert topology.link(1, 0) == pair_of().link(1, 0)
    assert (topology.fingerprint() == pair_of().fingerprint()) == (expected == STATED)


def test_what_is_stated_of_virtual_cards_is_for_planning_and_stays():
    assert corrected(pair_of("virtual"), measurement(30e9)) == pair_of("virtual")
