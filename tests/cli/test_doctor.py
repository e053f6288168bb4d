from dataclasses import replace

import pytest

from poolrt.topology.facts import HostFacts, Machine
from poolrt.transfer.measuring.effort import Effort
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof

FEW = Effort(sizes=(1024, 65536), probe_sizes=(65536,), host_probe_sizes=(65536,), repeats=1)


def test_a_dead_link_is_named_with_its_fix(run, pasted):
    code, out, err = run("doctor", "--from", pasted)
    assert code == 2
    assert "nvlink-active" in out
    assert "NVIDIA GeForce RTX 3090" in out
    assert "line 5" in err
    assert out.index("fail") < out.index("ok")


def test_the_json_form_keeps_the_contract(run_json, pasted):
    code, body = run_json("doctor", "--from", pasted)
    assert (code, body["schema"]) == (2, 1)
    assert all(set(check) == {"id", "verdict", "evidence", "fix"} for check in body["checks"])
    assert {check["verdict"] for check in body["checks"]} <= {"ok", "warn", "fail", "unknown"}
    dead = next(check for check in body["checks"] if check["id"] == "nvlink-active")
    assert (dead["verdict"], "inactive are 1" in dead["evidence"]) == ("fail", True)
    assert "seat" in dead["fix"]
    assert [remark["number"] for remark in body["not_understood"]] == [5]


def test_a_machine_without_a_gpu_ends_in_a_helpful_verdict(run, this_machine):
    this_machine(None)
    code, out, _ = run("doctor")
    assert code == 1
    assert "poolrt.virtual" in out


def test_a_healthy_pair_ends_well(run_json, this_machine, bridged_pair):
    this_machine(bridged_pair)
    code, body = run_json("doctor")
    assert code == 0
    verdicts = {check["id"]: check["verdict"] for check in body["checks"]}
    assert verdicts["nvlink-active"] == verdicts["peer-access"] == verdicts["driver-version"] == "ok"


@pytest.mark.parametrize(("change", "expected"), [({"mig": True}, 2), ({"compute_mode": "exclusive process"}, 1)])
def test_the_exit_code_tells_a_warning_from_a_failure(run, this_machine, bridged_pair, change, expected):
    first, second = bridged_pair.cards
    this_machine(replace(bridged_pair, cards=(replace(first, **change), second)))
    assert run("doctor")[0] == expected


def test_without_root_it_says_what_it_could_not_see(run, this_machine, bridged_pair, monkeypatch):
    this_machine(replace(bridged_pair, unseen=("NVML answers NO_PERMISSION to DeviceGetPcieReplayCounter",)))
    code, out, _ = run("doctor")
    assert code == 0
    assert "acs-redirect" in out
    assert "NO_PERMISSION" in out
    monkeypatch.setattr(
        "poolrt.cli.doctor._this_machine", lambda: replace(bridged_pair, host=HostFacts(root=False, xid_events=None))
    )
    assert "not root" in run("doctor")[1]


def test_text_without_a_card_is_no_diagnosis(run, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("hello\n")
    code, out, err = run("doctor", "--from", str(path))
    assert (code, out) == (2, "")
    assert "names no card" in err


def test_an_empty_machine_is_examined_too(run_json, this_machine):
    this_machine(Machine())
    code, body = run_json("doctor")
    assert code == 1
    assert body["checks"][0]["id"] == "cards"


def with_cuda_numbers(machine):
    return replace(machine, cards=tuple(replace(card, cuda_index=card.index) for card in machine.cards))


def proven(**facts):
    """Both directions of a pair were copied over, with these facts."""
    proofs = tuple(Proof(route="P2P", source=at, target=1 - at, nbytes=1 << 26, **facts) for at in range(2))
    return Measurement(devices=("cuda:0", "cuda:1"), proofs=proofs)


@pytest.mark.parametrize(
    ("facts", "arrive", "used"),
    [
        ({"nvlink_nbytes": 1 << 26}, "ok", "ok"),
        ({"nvlink_nbytes": 3}, "ok", "fail"),
        ({"wrong_nbytes": 1, "first_wrong": 0}, "fail", "unknown"),
        ({"failure": "uncorrectable NVLink error"}, "fail", "unknown"),
    ],
    ids=["good", "another way", "lies", "fails"],
)
def test_what_copies_showed_before_is_told(run_json, this_machine, bridged_pair, monkeypatch, facts, arrive, used):
    monkeypatch.setattr("poolrt.cli.doctor.recalled", lambda topology: proven(**facts))
    this_machine(with_cuda_numbers(bridged_pair))
    checks = {check["id"]: check for check in run_json("doctor")[1]["checks"]}
    assert (checks["copies-arrive"]["verdict"], checks["nvlink-used"]["verdict"]) == (arrive, used)
    assert facts.get("failure", "") in checks["copies-arrive"]["evidence"]


def test_gpus_are_probed_when_asked(run_json, this_machine, bridged_pair, monkeypatch):
    asked = []

    def measured(topology, **options):
        asked.append((topology, options))
        return proven(nvlink_nbytes=1 << 26)

    monkeypatch.setattr("poolrt.cli.doctor.measured", measured)
    this_machine(with_cuda_numbers(bridged_pair))
    code, body = run_json("doctor", "--probe")
    assert code == 0
    verdicts = {check["id"]: check["verdict"] for check in body["checks"]}
    assert verdicts["copies-arrive"] == verdicts["nvlink-used"] == "ok"
    ((topology, options),) = asked
    assert [card.device for card in topology.cards] == ["cuda:0", "cuda:1"]
    assert options["fresh"]


def test_virtual_cards_are_probed_and_called_virtual(run_json, this_machine, bridged_pair, monkeypatch):
    monkeypatch.setattr("poolrt.cli.doctor.QUICK", FEW)
    for machine in (None, bridged_pair):
        this_machine(machine)
        monkeypatch.setenv("POOLRT_CARDS", "virtual:2x8MiB")
        checks = [check for check in run_json("doctor", "--probe")[1]["checks"] if check["id"] == "copies-arrive"]
        assert [check["verdict"] for check in checks] == ["ok"]
        assert checks[0]["evidence"] == "virtual cards: 2 copies read back as written"


def test_pasted_text_cannot_be_probed(run, pasted):
    assert run("doctor", "--from", pasted, "--probe")[0] == 2
