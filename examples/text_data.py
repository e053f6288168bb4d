"""Text as BERT reads it: a WordPiece tokenizer, windows of tokens, and masked batches.

    text --> tokens --> windows of seq_len --> batches, masked anew each time
                        [CLS] t t t t [SEP]    [CLS] t [MASK] t t [SEP]
                                       labels: -100 -100  t  -100 ...

Everything follows from the text and one seed: the same arguments give the same batches, bit for bit.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Batch = dict[str, torch.Tensor]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100
"""the label that torch's cross entropy passes over"""


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The files' text, one document each; without files the help topics that come with every CPython.

    Raises:
        FileNotFoundError: if a file is not there.
    """
    if paths:
        return [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    topics: dict[str, str] = pydoc_data.topics.topics
    return [topics[name] for name in sorted(topics)]


def train_tokenizer(documents: Sequence[str], vocabulary_size: int = 30522) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer (Schuster and Nakajima 2012) trained on `documents`; lower case, as bert-*-uncased.

    Pairs of equal frequency are merged in the order of their ids, and the trainer numbers letters in the order of a
    hash table. Giving it the letters in sorted order makes the vocabulary the same in every run.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = _letters(tokenizer, documents)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _as_bert_tokenizer(tokenizer)


def _letters(tokenizer: Tokenizer, documents: Sequence[str]) -> list[str]:
    words = (
        word
        for document in documents
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(document))
    )
    return sorted({letter for word in words for letter in word})


def _as_bert_tokenizer(trained: Tokenizer) -> PreTrainedTokenizerFast:
    """The same vocabulary, with BERT's five special tokens only: the letters were special for the trainer's sake."""
    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL_TOKENS, strict=True)))


def windows_of_tokens(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> torch.Tensor:
    """All text as rows of `[CLS] tokens [SEP]`, padded at the end of the last row only; shape (windows, length), int64.

    Raises:
        ValueError: if a window has no room for text, or the text holds no token.
    """
    if sequence_length < 3:
        raise ValueError(f"a window of {sequence_length} tokens has no room between [CLS] and [SEP]; use 3 or more")
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [token for document in encoded for token in document]
    if not tokens:
        raise ValueError("the text holds no token; give files with text in them")
    room = sequence_length - 2
    rows = [
        [tokenizer.cls_token_id, *tokens[start : start + room], tokenizer.sep_token_id]
        for start in range(0, len(tokens), room)
    ]
    rows[-1] += [tokenizer.pad_token_id] * (sequence_length - len(rows[-1]))
    return torch.tensor(rows)


class MaskedBatches:
    """Endless batches for masked language modelling: windows in shuffled order, masked anew in every epoch."""

    def __init__(self, windows: torch.Tensor, tokenizer: PreTrainedTokenizerBase, batch_size: int, seed: int) -> None:
        self._windows = windows
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        rows: list[int] = []
        while True:
            while len(rows) < self._batch_size:
                rows += torch.randperm(len(self._windows), generator=self._generator).tolist()
            picked, rows = rows[: self._batch_size], rows[self._batch_size :]
            yield mask_tokens(self._windows[picked], self._tokenizer, self._generator)


def mask_tokens(windows: torch.Tensor, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator) -> Batch:
    """Hides 15 % of each window's tokens: 80 % of those become [MASK], 10 % any token, 10 % stay (Devlin et al. 2019).

    As in the authors' own data, every window hides a fixed share of its tokens and at least one, so that no window is
    without a label.

    Args:
        windows: token ids of shape (batch, length).
        tokenizer: says which ids are special and how many there are.
        generator: the only source of randomness.

    Returns:
        `input_ids`, `attention_mask` (1 where there is text) and `labels` (the hidden ids, `IGNORED` elsewhere), all
        of shape (batch, length).
    """
    special = torch.isin(windows, torch.tensor(tokenizer.all_special_ids))
    hidden = _hidden_positions(special, generator)
    fate = torch.rand(windows.shape, generator=generator)
    anything = torch.randint(len(tokenizer), windows.shape, generator=generator)
    input_ids = windows.masked_fill(hidden & (fate < 0.8), tokenizer.mask_token_id)
    input_ids = torch.where(hidden & (fate >= 0.9), anything, input_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": (windows != tokenizer.pad_token_id).long(),
        "labels": windows.masked_fill(~hidden, IGNORED),
    }


def _hidden_positions(special: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The 15 % of each row's ordinary tokens that drew the highest numbers, at least one; shape (batch, length)."""
    draw = torch.rand(special.shape, generator=generator).masked_fill(special, -1.0)
    ordinary = (~special).sum(dim=1, keepdim=True)
    count = (ordinary * 0.15).round().clamp(min=1)
    rank = draw.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < count) & ~special
