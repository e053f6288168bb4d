"""Every benchmark runs from its command line and says what it is for. What it measures is asserted nowhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tiny():
    from bert import BertShape

    return BertShape(layers=2, hidden=64, batch_size=4, sequence_length=8)


def test_overlap_of_layers_that_sleep(tmp_path: Path) -> None:
    import overlap

    answer = tmp_path / "overlap.json"
    overlap.main(["--only-schedule", "--cards", "2", "--micro-batches", "4", "--rounds", "1", "--json", str(answer)])
    rows = json.loads(answer.read_text())["schedule_efficiency"]
    assert [(row["cards"], row["micro_batches"]) for row in rows] == [(2, 4)]
    for row in rows:
        assert row["step_efficiency"] == pytest.approx(row["step_speedup"] / row["ideal_speedup"])
        assert row["forward_efficiency"] == pytest.approx(row["forward_speedup"] / row["ideal_speedup"])


def test_overlap_of_bert_has_every_contender(tiny) -> None:
    import overlap

    found = overlap.measure_bert(tiny, [2], rounds=1)
    assert set(found["median_s"]) == {
        "poolrt m=2",
        "one after another m=2",
        "plain torch, 1 core",
        "plain torch, 2 cores",
        "two threads m=2",
        "torch GPipe m=2",
        "torch 1F1B m=2",
    }
    compared = {row["contender"]: row["times_faster"] for row in found["comparisons"]}
    gpipe = found["seconds"]["torch GPipe m=2"][0] / found["seconds"]["poolrt m=2"][0]
    assert compared["torch GPipe m=2"] == pytest.approx(gpipe)


def test_one_card_compares_the_same_model_with_and_without_shard(tiny) -> None:
    import one_card

    found = one_card.measure(tiny, rounds=1, cuda=False)
    plain, sharded = (found["seconds"][name][0] for name in ("plain", "sharded"))
    assert found["overhead"] == pytest.approx(sharded / plain - 1)


def test_tensor_parallel_tells_what_every_region_costs(tiny) -> None:
    import tensor_parallel

    found = tensor_parallel.measure(tiny, cards=2, rounds=1, memory="1GiB", cuda=False)
    assert set(found["median_s"]) == {"one card", "layers on cards", "split layers"}
    first = next(row for row in found["regions"] if row["form"].endswith("intermediate"))
    assert first["calls"] == tiny.layers
    assert first["split_operations"] > first["whole_operations"], "each card does all of them on its part"
    hidden_nbytes = 4 * tiny.batch_size * tiny.sequence_length * tiny.hidden
    assert (first["copies"], first["copied_nbytes"]) == (1, hidden_nbytes), "what it reads goes to one more card"


def test_pooled_batch_grows_with_the_cards(tmp_path: Path) -> None:
    import pooled_batch

    answer, picture = tmp_path / "pooled.json", tmp_path / "pooled.png"
    flags = ["--model", "bert-tiny", "--card-memory", "8MiB", "--seq-len", "16", "--limit", "64", "--cards", "1", "2"]
    pooled_batch.main([*flags, "--json", str(answer), "--png", str(picture)])
    body = json.loads(answer.read_text())
    one, two = body["rows"]
    assert 0 < one["largest_batch"] < two["largest_batch"] <= 64
    assert two["predicted_largest_batch"] > 0
    assert one["samples_per_s"] > 0
    assert body["settings"]["card_memory"] == "8MiB"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_kernels_without_a_gpu_say_so(tmp_path: Path, capsys) -> None:
    import kernels

    answer = tmp_path / "kernels.json"
    kernels.main(["--quick", "--json", str(answer)])
    body = json.loads(answer.read_text())
    assert body["measured"] is False
    assert body["reason"] in capsys.readouterr().out.replace("\n", " ")


def test_copies_over_links_stand_beside_their_ideal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import copies

    monkeypatch.setattr(copies, "QUICK_SIZES", (1 << 20,))
    monkeypatch.setattr(copies, "SMALL_COUNT", 10)
    answer = tmp_path / "copies.json"
    copies.main(["--quick", "--rounds", "1", "--json", str(answer)])
    body = json.loads(answer.read_text())
    assert [(row["chunks"], row["ideal_bytes_per_s"]) for row in body["host_route"]] == [
        (2, pytest.approx(1e9 * 2 / 3)),
        (2, pytest.approx(0.5e9 * 2 / 3)),
        (2, pytest.approx(0.5e9 * 2 / 3)),
    ]
    for row in body["host_route"]:
        assert row["measured_bytes_per_s"] < min(row["down_bytes_per_s"], row["up_bytes_per_s"])
        assert row["share_of_ideal"] == pytest.approx(row["measured_bytes_per_s"] / row["ideal_bytes_per_s"])
    behind = body["behind_work"]
    assert behind["share_of_ideal"] == pytest.approx(behind["ideal_s"] / behind["seconds"][0])
    small = body["many_small"]
    one_each, together = (small["seconds"][name][0] for name in ("one each", "together"))
    assert small["times_faster"] == pytest.approx(one_each / together)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to check")
def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    answer = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--json", str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stdout
    assert not answer.exists()


def test_a_part_of_gpu_check_that_fails_or_hangs_is_not_passed() -> None:
    from gpu_check import Part, run_part
    from rich.console import Console

    def outcome(code: str, limit_s: float = 60.0):
        return run_part(Part(name="part", command=("-c", code), limit_s=limit_s), Console(quiet=True))

    assert outcome("print('fine')").passed
    assert "fine" in outcome("print('fine')").output_tail
    assert not outcome("raise SystemExit(3)").passed
    hanging = outcome("import time; time.sleep(60)", limit_s=0.5)
    assert not hanging.passed
    assert "limit" in hanging.output_tail


def test_parts_of_gpu_check_share_a_limit_and_each_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check

    written: list[list[bool]] = []
    sleep = ("-c", "import time; time.sleep(1)")
    parts = [gpu_check.Part(name=str(number), command=sleep, limit_s=60) for number in range(3)]
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "TOGETHER_S", 1.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "a card")
    monkeypatch.setattr(gpu_check, "_driver", lambda: "13000")
    monkeypatch.setattr(
        gpu_check, "write_json", lambda path, name, body: written.append([part["passed"] for part in body["parts"]])
    )
    assert gpu_check.main([]) == 1
    assert [len(passed) for passed in written] == [1, 2, 3]
    assert not written[-1][-1]
