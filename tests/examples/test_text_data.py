import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DOCUMENTS = ["the quick brown fox jumps over the lazy dog. " * 8, "pack my box with five dozen liquor jugs! " * 8]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def data():
    import text_data

    return text_data


@pytest.fixture
def tokenizer(data):
    return data.train_tokenizer(DOCUMENTS, vocabulary_size=200)


def test_default_text_is_what_python_ships(data) -> None:
    documents = data.read_documents([])
    assert sum(map(len, documents)) > 100_000
    assert documents == data.read_documents([])


def test_own_files_are_read(data, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"two \xff three")
    assert data.read_documents([tmp_path / "a.txt", tmp_path / "b.txt"]) == ["one", "two � three"]
    with pytest.raises(FileNotFoundError):
        data.read_documents([tmp_path / "missing.txt"])


def test_tokenizer_gives_back_the_words_it_was_trained_on(tokenizer) -> None:
    encoded = tokenizer("The QUICK fox!", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded) == "the quick fox!"
    assert tokenizer.unk_token_id not in encoded


def test_tokenizer_has_berts_special_tokens_and_no_others(data, tokenizer) -> None:
    assert sorted(tokenizer.all_special_tokens) == sorted(data.SPECIAL_TOKENS)
    assert [tokenizer.convert_tokens_to_ids(token) for token in data.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer("Ω", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_tokenizer_is_the_same_in_another_process(data) -> None:
    code = (
        "import text_data, hashlib, pathlib;"
        "t = text_data.train_tokenizer(text_data.read_documents([pathlib.Path(text_data.__file__)]));"
        "print(hashlib.sha256(repr(sorted(t.get_vocab().items())).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=EXAMPLES, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


#   text:      t0 t1 t2 t3 t4 t5 t6
#   windows:   [CLS] t0 t1 t2 [SEP]
#              [CLS] t3 t4 t5 [SEP]
#              [CLS] t6 [SEP] [PAD] [PAD]
def test_windows_hold_all_text_once_and_in_order(data, tokenizer) -> None:
    windows = data.windows_of_tokens(["the quick brown fox jumps over dog"], tokenizer, sequence_length=5)
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    text = tokenizer("the quick brown fox jumps over dog", add_special_tokens=False)["input_ids"]
    assert len(text) == 7
    assert windows.tolist() == [[cls, *text[0:3], sep], [cls, *text[3:6], sep], [cls, text[6], sep, pad, pad]]


@pytest.mark.parametrize(("documents", "length"), [(["fox"], 2), ([" "], 8)])
def test_windows_without_room_or_text_are_refused(data, tokenizer, documents, length) -> None:
    with pytest.raises(ValueError, match=r"room|no token"):
        data.windows_of_tokens(documents, tokenizer, length)


@pytest.fixture
def windows(data, tokenizer) -> torch.Tensor:
    return data.windows_of_tokens(DOCUMENTS, tokenizer, sequence_length=42)


def test_labels_are_the_hidden_tokens_and_nothing_else_changes(data, tokenizer, windows) -> None:
    batch = data.mask_tokens(windows, tokenizer, torch.Generator().manual_seed(1))
    hidden = batch["labels"] != data.IGNORED
    assert torch.equal(batch["labels"][hidden], windows[hidden])
    assert torch.equal(batch["input_ids"][~hidden], windows[~hidden])
    assert torch.equal(batch["attention_mask"], (windows != tokenizer.pad_token_id).long())


def test_every_window_hides_fifteen_percent_and_no_special_token(data, tokenizer, windows) -> None:
    batch = data.mask_tokens(windows, tokenizer, torch.Generator().manual_seed(1))
    hidden = batch["labels"] != data.IGNORED
    special = torch.isin(windows, torch.tensor(tokenizer.all_special_ids))
    ordinary = (~special).sum(dim=1)
    assert not (hidden & special).any()
    assert hidden.sum(dim=1).tolist() == [max(1, round(count * 0.15)) for count in ordinary.tolist()]


def test_a_window_of_one_token_still_has_a_label(data, tokenizer) -> None:
    windows = data.windows_of_tokens(["fox"], tokenizer, sequence_length=3)
    batch = data.mask_tokens(windows, tokenizer, torch.Generator().manual_seed(1))
    assert (batch["labels"] != data.IGNORED).sum() == 1


def test_hidden_tokens_become_mask_any_or_stay_eighty_ten_ten(data, tokenizer, windows) -> None:
    generator = torch.Generator().manual_seed(3)
    masked = changed = total = 0
    for _ in range(200):
        batch = data.mask_tokens(windows, tokenizer, generator)
        hidden = batch["labels"] != data.IGNORED
        shown = batch["input_ids"][hidden]
        masked += int((shown == tokenizer.mask_token_id).sum())
        changed += int((shown != batch["labels"][hidden]).sum())
        total += shown.numel()
    assert masked / total == pytest.approx(0.8, abs=0.03)
    assert (changed - masked) / total == pytest.approx(0.1, abs=0.03)


def take(data, tokenizer, windows, *, count: int, seed: int = 0, batch_size: int = 4):
    return list(itertools.islice(data.MaskedBatches(windows, tokenizer, batch_size, seed), count))


def test_same_seed_same_batches_other_seed_others(data, tokenizer, windows) -> None:
    first, again, other = (take(data, tokenizer, windows, count=5, seed=seed) for seed in (7, 7, 8))
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, other, strict=True))


def test_an_epoch_shows_every_window_once(data, tokenizer, windows) -> None:
    epoch = take(data, tokenizer, windows, count=len(windows), batch_size=1)
    seen = [torch.where(batch["labels"] == data.IGNORED, batch["input_ids"], batch["labels"]) for batch in epoch]
    assert sorted(torch.cat(seen).tolist()) == sorted(windows.tolist())


def test_a_batch_may_be_larger_than_the_text(data, tokenizer, windows) -> None:
    (batch,) = take(data, tokenizer, windows, count=1, batch_size=3 * len(windows) + 1)
    assert batch["input_ids"].shape == (3 * len(windows) + 1, 42)
