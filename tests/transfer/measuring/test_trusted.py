"""Only peer routes that deliver are used; what is stated of the others is corrected."""

import logging
from dataclasses import replace

import pytest
import torch

import poolrt
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.route import route
from poolrt.transfer import routes
from poolrt.transfer.measuring import measured as keeping
from poolrt.transfer.measuring import trusted
from poolrt.transfer.measuring.figures import Line
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof, judge

GIB = 1 << 30
FAST, HOST = Line(latency_s=7e-6, bytes_per_s=50e9), Line(latency_s=20e-6, bytes_per_s=10e9)
FIRST, SECOND = (torch.device("cuda", ordinal) for ordinal in range(2))


def gpus(link="nvlink3x4"):
    topology = virtual_topology([GIB, GIB], link)
    cards = tuple(replace(card, kind="cuda", device=f"cuda:{card.index}") for card in topology.cards)
    return replace(topology, cards=cards)


def found(wrong_nbytes=0, peer=FAST):
    """The way from 0 to 1 is as given, the way back is good."""
    ways = {(0, 1): wrong_nbytes, (1, 0): 0}
    proofs = tuple(Proof(route="P2P", source=x, target=y, nbytes=64, wrong_nbytes=n) for (x, y), n in ways.items())
    verdicts = tuple(
        judge([proof], {"P2P": peer if proof.source == 0 else FAST, "HOST": HOST}, proof.source, proof.target)
        for proof in proofs
    )
    return Measurement(devices=("cuda:0", "cuda:1"), proofs=proofs, verdicts=verdicts)


@pytest.fixture
def measures(monkeypatch):
    """Makes measuring answer this; counts how often it is asked."""
    asked = []

    def answer(measurement, kept=None):
        monkeypatch.setattr(trusted, "recalled", lambda topology: kept)
        monkeypatch.setattr(trusted, "measured", lambda topology, effort: asked.append(topology) or measurement)
        return asked

    yield answer
    routes.current().forget("cuda")


def test_good_peers_are_used(measures, caplog):
    asked = measures(found())
    with caplog.at_level(logging.WARNING, "poolrt"):
        assert trusted.trusted(gpus()) == gpus()
    assert asked == [gpus()]
    assert routes.current().between(FIRST, SECOND, 1 << 30) == "P2P"
    assert caplog.messages == []


@pytest.mark.parametrize(
    "measurement",
    [found(wrong_nbytes=1), found(peer=Line(latency_s=30e-6, bytes_per_s=1e9))],
    ids=["lies", "slower than the host"],
)
def test_a_peer_that_is_no_good_is_never_used_and_has_one_line_in_the_log(measures, caplog, measurement):
    measures(measurement)
    with caplog.at_level(logging.WARNING, "poolrt"):
        topology = trusted.trusted(gpus())
    assert {routes.current().between(FIRST, SECOND, 1 << power) for power in range(40)} == {"HOST"}
    assert routes.current().between(SECOND, FIRST, 1 << 30) == "P2P"
    assert [route(topology, *pair).kind for pair in ((0, 1), (1, 0))] == ["HOST", "P2P"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("card 0 to card 1: ")


def test_short_copies_and_long_ones_may_take_different_routes(measures):
    measures(found(peer=Line(latency_s=1e-6, bytes_per_s=1e9)))
    trusted.trusted(gpus())
    assert routes.current().between(FIRST, SECOND, 1 << 10) == "P2P"
    assert routes.current().between(FIRST, SECOND, 1 << 26) == "HOST"


def test_what_was_measured_before_is_not_measured_again(measures):
    asked = measures(None, kept=found(wrong_nbytes=1))
    assert route(trusted.trusted(gpus()), 0, 1).kind == "HOST"
    assert route(trusted.remembered(gpus()), 0, 1).kind == "HOST"
    assert asked == []


def test_what_was_never_measured_is_remembered_as_stated(measures):
    asked = measures(found(wrong_nbytes=1))
    assert trusted.remembered(gpus()) == gpus()
    assert asked == []


@pytest.mark.parametrize(
    "topology", [gpus("host"), logical_topology("cuda:0", [GIB, GIB])], ids=["no peers", "one GPU"]
)
def test_without_peer_routes_there_is_nothing_to_prove(measures, topology):
    asked = measures(found(wrong_nbytes=1))
    assert trusted.trusted(topology) == topology
    assert asked == []


def test_virtual_cards_deliver(monkeypatch, tmp_path):
    topology = poolrt.virtual(2, "16MiB", link="nvlink3x4")  # first: the backend lies in the usual cache
    monkeypatch.setenv("POOLRT_CACHE_DIR", str(tmp_path))
    measurement = keeping.measured(topology)
    assert trusted.choices(measurement).keys() == {(0, 1), (1, 0)}
    assert all(verdict.finding in ("usable", "slower") for verdict in measurement.verdicts)
