import json

import pytest

from poolrt.cli.bench import effort_of, parse_pairs
from poolrt.errors import ConfigurationError
from poolrt.transfer import copy as copying
from poolrt.transfer.measuring import measure as measuring
from poolrt.transfer.measuring.measurement import Measurement

FEW = ("--quick", "--sizes", "4KiB,256KiB", "--virtual", "2x16MiB", "--link", "nvlink3x4")


def test_every_pair_and_route_has_a_row_and_every_peer_a_sentence(run):
    code, out, err = run("bench", "copy", *FEW)
    assert (code, err) == (0, "")
    for words in ("0 -> 1", "1 -> 0", "LOCAL", "P2P", "HOST", "4 KiB to 256 KiB", "GB/s each, both ways"):
        assert words in out
    assert "  card 0 to card 1: peer copies of up to " in out
    assert "virtual cards" in out


def test_the_json_form_keeps_the_contract(run):
    code, out, _ = run("bench", "copy", *FEW, "--json")
    body = json.loads(out)
    assert (code, body["schema"]) == (0, 1)
    assert [card["kind"] for card in body["cards"]] == ["virtual", "virtual"]
    assert body["seconds"] > 0
    found = Measurement.from_dict(body)
    assert found.verdict(0, 1).finding in ("usable", "slower")  # by what else the machine does meanwhile
    assert [point.nbytes for point in found.of_route("HOST", 1, 0, "one way").points] == [4096, 262144]


def test_one_pair_alone(run):
    code, out, _ = run("bench", "copy", *FEW, "--pairs", "0:1", "--json")
    assert code == 0
    assert {(x["source"], x["target"]) for x in json.loads(out)["figures"]} == {(0, 1), (1, 0)}


def test_the_variable_that_chooses_cards_counts_here_too(run, monkeypatch):
    monkeypatch.setenv("POOLRT_CARDS", "virtual:3x16MiB")
    code, out, _ = run("bench", "copy", "--sizes", "1KiB", "--pairs", "0:2", "--json")
    assert code == 0
    assert len(json.loads(out)["cards"]) == 3


def test_a_machine_without_a_gpu_measures_virtual_cards_and_says_so(run, this_machine):
    this_machine(None)
    with pytest.warns(UserWarning, match="no CUDA GPU"):
        code, out, _ = run("bench", "copy", "--quick", "--sizes", "4KiB", "--pairs", "0:1")
    assert code == 0
    assert "virtual cards" in out


@pytest.fixture
def lying_peers(monkeypatch):
    def lie(kind, source, target):
        copying.copy_over(kind, source, target)
        if kind == "P2P":
            target[0] += 1

    real = measuring._Bench.__init__
    monkeypatch.setattr(
        measuring._Bench,
        "__init__",
        lambda self, topology, copier, effort, sent_nbytes: real(self, topology, lie, effort, sent_nbytes),
    )


@pytest.mark.usefixtures("lying_peers")
def test_lies_are_told_and_end_with_code_1(run):
    code, out, _ = run("bench", "copy", *FEW)
    assert code == 1
    assert "lies    card 0 to card 1: " in out


@pytest.mark.parametrize(
    "words",
    [
        ("--pairs", "0:x"),
        ("--pairs", "0"),
        ("--pairs", "0:7"),
        ("--sizes", "big"),
        ("--sizes", "13"),
        ("--virtual", "x"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_ends_in_a_sentence(run, words):
    code, out, err = run("bench", "copy", *FEW, *words)
    assert (code, out) == (2, "")
    assert "poolrt bench: " in err


def test_pairs_go_both_ways_and_a_card_can_be_paired_with_itself():
    assert parse_pairs("0:1, 2:2") == [(0, 1), (1, 0), (2, 2)]
    assert parse_pairs(None) is None
    with pytest.raises(ConfigurationError, match="0:1"):
        parse_pairs("0-1")


def test_sizes_are_sorted_and_counted_once():
    class Options:
        quick, sizes = False, "1MiB,4KiB,1MiB"

    assert effort_of(Options).sizes == (4096, 1 << 20)
