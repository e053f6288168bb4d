import json
import os
import subprocess
from dataclasses import replace

import pytest

from poolrt.topology.identity import Identity
from poolrt.transfer.measuring.cache import Kept, MeasurementFile
from poolrt.transfer.measuring.measurement import Measurement

PAIR = Identity(cards=("GPU-aa", "GPU-bb"), driver="550.54.14", boot="1111-2222")
FOUND = Measurement(devices=("cuda:0", "cuda:1"))


@pytest.fixture
def file(tmp_path):
    return MeasurementFile(tmp_path, PAIR)


def test_what_is_kept_is_read_again(file):
    assert file.read() == Kept()
    file.keep(FOUND)
    assert file.read() == Kept(measurement=FOUND)
    assert os.listdir(file.path.parent) == [file.path.name]


@pytest.mark.parametrize(
    "change",
    [{"driver": "560.1"}, {"boot": "3333"}, {"cards": ("GPU-bb", "GPU-aa")}, {"cards": ("GPU-aa",)}, {"virtual": True}],
    ids=["driver", "boot", "order", "fewer", "virtual"],
)
def test_it_holds_for_the_same_cards_driver_and_start_of_the_machine_only(file, tmp_path, change):
    file.keep(FOUND)
    assert MeasurementFile(tmp_path, replace(PAIR, **change)).read() == Kept()


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema": 1}', "cut", "other schema", "other cards", "\0"])
def test_a_damaged_file_is_as_none(file, damage):
    file.keep(FOUND)
    text = file.path.read_text()
    body = json.loads(text)
    damages = {
        "cut": text[: len(text) // 2],
        "other schema": json.dumps(body | {"schema": 99}),
        "other cards": json.dumps(body | {"identity": {}}),
    }
    file.path.write_text(damages.get(damage, damage))
    assert file.read() == Kept()


def test_a_measurement_of_another_schema_is_measured_anew(file):
    file.keep(FOUND)
    body = json.loads(file.path.read_text())
    body["measurement"]["schema"] = 99
    file.path.write_text(json.dumps(body))
    assert file.read() == Kept()


def test_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path):
    (tmp_path / "measured").write_text("a file where the folder would be")
    file = MeasurementFile(tmp_path, PAIR)
    file.keep(FOUND)
    assert file.read() == Kept()


@pytest.fixture
def dead_process():
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_routes_that_killed_the_processes_which_tried_them_are_remembered(file, dead_process, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: dead_process)
        file.trying((0, 1), file.read().deadly)
    assert file.read() == Kept(deadly=((0, 1),))
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: dead_process)
        file.trying((1, 0), ((0, 1),))
    assert file.read() == Kept(deadly=((0, 1), (1, 0)))
    file.keep(FOUND)
    assert file.read() == Kept(measurement=FOUND)


def test_a_process_that_still_tries_is_not_dead(file):
    file.trying((0, 1))
    body = json.loads(file.path.read_text())
    assert file.read().deadly == ((0, 1),)  # an earlier process that had this one's number
    file.path.write_text(json.dumps(body | {"process": os.getppid()}))
    assert file.read() == Kept()
