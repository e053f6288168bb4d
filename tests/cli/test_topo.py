import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from poolrt.topology.facts import Machine
from poolrt.topology.topology import Topology
from poolrt.transfer.measuring.figures import Point, figures_of
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof, judge

LINK_KEYS = {"source", "target", "kind", "relation", "bytes_per_s", "latency_s"}


def test_a_box_is_shown_as_a_matrix(run):
    code, out, err = run("topo", "--box", "4x-rtx3090-two-pairs")
    assert (code, err) == (0, "")
    assert out.count("NV4") == 4
    assert "nvlink3rtxx4" in out
    assert "56.25 GB/s" in out
    assert "PHB HOST" in out
    assert "https://github.com/aikitoria" in out


def test_what_was_measured_is_shown_beside_what_the_wire_could_carry(run):
    _, out, _ = run("topo", "--box", "2x-h100-pcie-nvlink")
    assert "300 GB/s" in out
    assert "256.6" in out


def test_the_json_form_keeps_the_contract(run_json):
    code, body = run_json("topo", "--box", "8x-rtxpro6000")
    assert (code, body["schema"], len(body["cards"]), len(body["links"])) == (0, 1, 8, 56)
    assert {card["kind"] for card in body["cards"]} == {"recorded"}
    assert {"index", "name", "kind", "memory_bytes", "numa_node"} <= set(body["cards"][0])
    assert all(set(link) >= LINK_KEYS for link in body["links"])
    link = next(x for x in body["links"] if (x["source"], x["target"]) == (0, 1))
    assert (link["kind"], link["relation"], link["wire"]) == ("PCIE", "PIX", "pcie5x16")
    assert link["nominal_bytes_per_s"] == pytest.approx(63.02e9, rel=1e-3)
    assert link["measured_bytes_per_s"] == link["bytes_per_s"] == 55e9
    assert (link["nvlinks"], link["peer_access"]) == (0, True)


def test_the_json_form_can_be_read_back(run):
    _, out, _ = run("topo", "--box", "2x-rtx3090-nvlink", "--json")
    topology = Topology.from_json(out)
    assert topology.link(0, 1).relation == "NV4"


def test_an_unknown_box_ends_in_a_sentence(run):
    code, out, err = run("topo", "--box", "nope")
    assert (code, out) == (2, "")
    assert "2x-rtx3090-nvlink" in err
    assert "Traceback" not in err


def test_pasted_text_is_shown_and_its_odd_lines_named(run, pasted):
    code, out, err = run("topo", "--from", pasted)
    assert code == 0
    assert "NV3" in out
    assert "NVIDIA GeForce RTX 3090" in out
    assert err.strip() == "line 5: not understood: 'what is this line?'"


def test_of_a_long_log_the_first_odd_lines_are_named(run, run_json, pasted):
    Path(pasted).write_text(Path(pasted).read_text() + "odd\n" * 100)
    err = run("topo", "--from", pasted)[2].splitlines()
    assert len(err) == 21
    assert err[-1].startswith("and 81 more lines")
    assert len(run_json("topo", "--from", pasted)[1]["not_understood"]) == 101


def test_pasted_text_as_json(run_json, pasted):
    code, body = run_json("topo", "--from", pasted)
    assert code == 0
    assert [card["kind"] for card in body["cards"]] == ["recorded"] * 2
    assert [card["numa_node"] for card in body["cards"]] == [0, 0]
    assert [remark["number"] for remark in body["not_understood"]] == [5]
    assert {link["kind"] for link in body["links"]} == {"NVLINK"}


def test_standard_input_is_a_file_too(run, pasted, monkeypatch):
    data = Path(pasted).read_bytes() + b"\xff\xfe\n"  # and bytes that are no text
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    code, out, _ = run("topo", "--from", "-")
    assert code == 0
    assert "NV3" in out


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "hello\n"], ids=["missing", "empty", "comment", "other"])
def test_text_that_tells_of_no_card_ends_in_a_sentence(run, tmp_path, content):
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_text(content)
    code, out, err = run("topo", "--from", str(path))
    assert (code, out) == (2, "")
    assert str(path) in err


def test_this_machine_s_cards_are_shown(run_json, this_machine, bridged_pair):
    this_machine(bridged_pair)
    code, body = run_json("topo")
    assert code == 0
    assert [(card["kind"], card["device"], card["bus_id"]) for card in body["cards"]] == [
        ("cuda", "cuda:0", "0000:00:00.0"),
        ("cuda", "cuda:1", "0000:01:00.0"),
    ]
    assert body["links"][0]["kind"] == "NVLINK"
    assert body["links"][0]["measured_bytes_per_s"] is None


@pytest.mark.parametrize("machine", [None, Machine()], ids=["no driver", "no card"])
def test_without_a_gpu_the_virtual_cards_are_shown(run, this_machine, machine):
    this_machine(machine)
    code, out, err = run("topo")
    assert code == 0
    assert "vcard:1" in out
    assert "no CUDA GPU" in err


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        ("virtual:3x1GiB", ["vcard:0", "vcard:1", "vcard:2"]),
        ("logical:cuda:0:2x8GiB", ["cuda:0", "cuda:0"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:1,0", ["cuda:1", "cuda:0"]),
    ],
)
def test_the_variable_that_chooses_cards_counts_here_too(
    run_json, this_machine, bridged_pair, monkeypatch, wanted, devices
):
    this_machine(bridged_pair)
    monkeypatch.setenv("POOLRT_CARDS", wanted)
    code, body = run_json("topo")
    assert (code, [card["device"] for card in body["cards"]]) == (0, devices)


def test_a_gpu_that_is_not_there_cannot_be_chosen(run, this_machine, bridged_pair, monkeypatch):
    this_machine(bridged_pair)
    monkeypatch.setenv("POOLRT_CARDS", "cuda:0,5")
    code, _, err = run("topo")
    assert code == 2
    assert "5" in err


@pytest.mark.parametrize("box", ["2x-rtx3090-nvlink", "8x-v100-dgx1"])
def test_a_picture_is_drawn(run, tmp_path, box):
    pytest.importorskip("matplotlib")
    path = tmp_path / "box.png"
    code, _, err = run("topo", "--box", box, "--plot", str(path))
    assert (code, err) == (0, "")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_ends_in_a_sentence(run, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("missing/box.png", "box.nonsense"):
        code, _, err = run("topo", "--box", "2x-rtx4090", "--plot", str(tmp_path / name))
        assert code == 2
        assert name in err


def test_without_matplotlib_the_remedy_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run("topo", "--box", "2x-rtx4090", "--plot", str(tmp_path / "x.png"))
    assert code == 2
    assert "poolrt[plot]" in err


def test_what_was_measured_before_is_shown_for_these_cards(run_json, this_machine, bridged_pair, monkeypatch):
    lies = judge([Proof(route="P2P", source=1, target=0, nbytes=8, wrong_nbytes=1)], {}, 1, 0)
    points = [Point(nbytes=10**6, seconds=1e-4)]
    figures = (figures_of(points, route="P2P", source=0, target=1, direction="one way"),)
    found = Measurement(devices=("cuda:0", "cuda:1"), figures=figures, verdicts=(lies,))
    monkeypatch.setattr("poolrt.cli.topo.recalled", lambda topology: found if len(topology) == 2 else None)
    this_machine(bridged_pair)
    there, back = run_json("topo")[1]["links"]
    assert there["measured_bytes_per_s"] == there["bytes_per_s"] == pytest.approx(10e9)
    assert there["nominal_bytes_per_s"] == pytest.approx(56.25e9)
    assert (back["kind"], back["finding"]) == ("HOST", "lies")


def test_copies_are_measured_when_asked(run, run_json, monkeypatch):
    monkeypatch.setenv("POOLRT_CARDS", "virtual:2x8MiB")
    code, out, _ = run("topo", "--measure")
    assert code == 0
    assert out.count("meas. ") == 2
    assert "virtual cards: measured are copies within the host's memory" in out
    link = run_json("topo", "--measure")[1]["links"][0]
    assert link["finding"] in ("usable", "slower")  # by what else the machine does meanwhile
    assert link["measured_bytes_per_s"] > 0
    assert run_json("topo")[1]["links"][0]["measured_bytes_per_s"] is None  # nothing is kept of virtual cards


def test_a_recorded_box_cannot_be_measured_here(run):
    code, _, err = run("topo", "--box", "2x-rtx4090", "--measure")
    assert code == 2
    assert "--measure" in err
