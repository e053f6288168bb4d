import contextlib
import json
from pathlib import Path

import pytest
import torch

TINY = ["--size", "tiny", "--seq-len", "16", "--batch-size", "8", "--card-memory", "256MiB"]


@pytest.fixture
def example():
    import bert_large

    return bert_large


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


def results(example, tmp_path: Path, *flags: str) -> dict:
    answer = tmp_path / "results.json"
    example.main([*TINY, "--json", str(answer), *flags])
    return json.loads(answer.read_text())


def test_flags_are_these_and_no_others(example) -> None:
    assert set(vars(example.parse_options([]))) == {
        "size", "model", "text", "cards", "card_memory", "batch_size", "seq_len", "steps", "micro_batches",
        "learning_rate", "dropout", "seed", "single_card", "json",
    }  # fmt: skip


def test_large_is_bert_large(example) -> None:
    with torch.device("meta"):
        model, _ = example.make_model(example.parse_options(["--size", "large"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == 335_174_458


@pytest.mark.parametrize("size", ["base", "tiny"])
def test_every_token_has_a_row(example, size: str) -> None:
    with torch.device("meta"):
        model, tokenizer = example.make_model(example.parse_options(["--size", size]))
    assert len(tokenizer) <= model.config.vocab_size


def test_published_weights_come_with_their_tokenizer(example, tmp_path: Path, text: Path) -> None:
    model, tokenizer = example.make_model(example.parse_options(["--size", "tiny", "--text", str(text)]))
    model.save_pretrained(tmp_path / "published")
    tokenizer.save_pretrained(tmp_path / "published")
    again, same = example.make_model(example.parse_options(["--model", str(tmp_path / "published")]))
    assert torch.equal(again.state_dict()["cls.predictions.bias"], model.state_dict()["cls.predictions.bias"])
    assert same.get_vocab() == tokenizer.get_vocab()


def test_the_loop_is_plain_pytorch_and_learns(example, text: Path) -> None:
    options = example.parse_options([*TINY, "--text", str(text), "--steps", "30", "--learning-rate", "3e-3"])
    torch.manual_seed(0)
    model, tokenizer = example.make_model(options)
    windows = example.windows_of_tokens(example.read_documents(options.text), tokenizer, options.seq_len)
    losses, samples_per_s = example.train(model, example.MaskedBatches(windows, tokenizer, 8, 0), options)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert samples_per_s > 0


def test_pooled_training_learns_and_reports(example, tmp_path: Path, text: Path) -> None:
    found = results(example, tmp_path, "--text", str(text), "--steps", "30", "--learning-rate", "3e-3")
    assert sum(found["losses"][-5:]) < 0.7 * sum(found["losses"][:5])
    assert set(found) == {"arguments", "losses", "samples_per_s", "report"}
    assert found["report"]["measured_step_s"] > 0
    for card in found["report"]["cards"]:
        assert 0 < card["measured_peak_bytes"] <= 256 << 20


def test_the_same_seed_gives_the_same_losses(example, tmp_path: Path, text: Path) -> None:
    flags = ("--text", str(text), "--steps", "3", "--micro-batches", "2", "--dropout", "0")
    first, again = (results(example, tmp_path, *flags) for _ in range(2))
    assert first["losses"] == again["losses"]
    assert first["losses"] != results(example, tmp_path, *flags, "--seed", "1")["losses"]


def test_one_card_runs_out_of_memory_and_two_do_not(example, tmp_path: Path, text: Path, capsys) -> None:
    flags = ("--text", str(text), "--steps", "1", "--card-memory", "13MiB", "--micro-batches", "2")
    found = results(example, tmp_path, *flags, "--single-card")
    printed = capsys.readouterr().out
    assert "out of memory on one card" in printed
    assert "vcard:0" in printed
    assert len(found["losses"]) == 1


@pytest.mark.parametrize("flag", [("--micro-batches", "many"), ("--size", "huge"), ("--steps", "few")])
def test_a_wrong_flag_ends_with_usage(example, flag, capsys) -> None:
    with pytest.raises(SystemExit), contextlib.redirect_stdout(None):
        example.parse_options(list(flag))
    assert flag[0] in capsys.readouterr().err
