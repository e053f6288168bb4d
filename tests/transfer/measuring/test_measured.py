"""What was measured is kept, and found again for the same cards only."""

import logging
from dataclasses import replace

import pytest

import poolrt
from poolrt.errors import DriverError
from poolrt.topology.identity import Identity
from poolrt.transfer.measuring import measured as room
from poolrt.transfer.measuring.effort import Effort
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import PairVerdict, Proof

SMALL = Effort(sizes=(1024, 65536), probe_sizes=(65536,), host_probe_sizes=(65536,), repeats=1)
CARDS = Identity(cards=("GPU-aa", "GPU-bb"), driver="550.54.14", boot="1111")


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """Two virtual cards, and an empty cache folder."""
    cards = virtual_pair()  # first: the backend lies in the usual cache
    monkeypatch.setenv("POOLRT_CACHE_DIR", str(tmp_path))
    return cards


def virtual_pair():
    return poolrt.virtual(2, "64MiB", link="nvlink3x4")


@pytest.fixture
def passed_off_as_gpus(monkeypatch):
    """The two cards say that they are GPUs."""
    monkeypatch.setattr(room, "identify", lambda topology: CARDS)


@pytest.fixture
def runs(monkeypatch):
    """Counts the measurements."""
    made = []
    real = room.measure
    monkeypatch.setattr(room, "measure", lambda *args, **kwargs: made.append(kwargs) or real(*args, **kwargs))
    return made


@pytest.mark.usefixtures("passed_off_as_gpus")
def test_gpus_are_measured_once(pair, runs):
    assert room.recalled(pair) is None
    first = room.measured(pair, effort=SMALL)
    assert room.measured(pair, effort=SMALL) == first == room.recalled(pair)
    assert len(runs) == 1
    assert first.verdict(0, 1).finding in ("usable", "slower")  # by what else the machine does meanwhile


@pytest.mark.usefixtures("passed_off_as_gpus")
def test_fresh_measures_again_and_keeps_that(pair, runs):
    room.measured(pair, effort=SMALL)
    second = room.measured(pair, effort=SMALL, fresh=True)
    assert len(runs) == 2
    assert room.recalled(pair) == second


@pytest.mark.usefixtures("passed_off_as_gpus")
def test_a_damaged_file_is_measured_anew(pair, runs, tmp_path):
    first = room.measured(pair, effort=SMALL)
    (file,) = (tmp_path / "measured").iterdir()
    file.write_text(file.read_text()[:100])
    assert room.recalled(pair) is None
    again = room.measured(pair, effort=SMALL)
    assert len(runs) == 2
    assert again.devices == first.devices
    assert room.recalled(pair) == again


@pytest.mark.usefixtures("passed_off_as_gpus")
def test_a_pair_that_killed_the_process_is_left_alone_next_time(pair, runs, monkeypatch):
    class Killed(BaseException):
        pass

    def die(pair):
        raise Killed

    real = room.MeasurementFile.trying
    monkeypatch.setattr(room.MeasurementFile, "trying", lambda self, way, deadly: (real(self, way, deadly), die(way)))
    with pytest.raises(Killed):
        room.measured(pair, effort=SMALL)
    monkeypatch.setattr(room.MeasurementFile, "trying", real)
    found = room.measured(pair, effort=SMALL)
    assert runs[-1]["distrusted"] == ((0, 1),)
    assert found.verdicts[0].finding == "fails"
    assert found.verdicts[1].finding in ("usable", "slower")  # by what else the machine does meanwhile


def test_virtual_cards_are_kept_only_when_asked(pair, runs, tmp_path):
    room.measured(pair, effort=SMALL)
    assert list(tmp_path.iterdir()) == []
    kept = room.measured(pair, effort=SMALL, keep_virtual=True)
    assert room.recalled(virtual_pair()) == kept
    assert len(runs) == 2
    assert room.recalled(poolrt.virtual(2, "64MiB", link="pcie3x8")) is None


def test_every_peer_route_that_is_not_used_has_one_line_in_the_log(caplog):
    verdicts = tuple(
        PairVerdict(source=at, target=1 - at, finding=finding, sentence=f"about {finding}", choice=((0, "HOST"),))
        for at, finding in enumerate(("lies", "slower"))
    )
    used = replace(verdicts[0], finding="usable", choice=((0, "P2P"),))
    with caplog.at_level(logging.WARNING, "poolrt"):
        room.announce(Measurement(devices=(), verdicts=(*verdicts, used)))
    assert [record.getMessage() for record in caplog.records] == ["about lies", "about slower"]


@pytest.mark.parametrize("facts", [{"wrong_nbytes": 3, "first_wrong": 1}, {"failure": "lost"}])
@pytest.mark.parametrize("target", [1, 2])
def test_a_card_whose_way_to_the_host_changes_bytes_is_refused(facts, target):
    """The way round every bad peer is the way through the host: without it there is none."""
    proof = Proof(route="HOST", source=1, target=target, nbytes=100, **facts)
    with pytest.raises(DriverError, match="card 1"):
        room.announce(Measurement(devices=(), proofs=(proof,)))
