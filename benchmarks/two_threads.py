"""The ceiling of two cores: two threads that never wait for each other, each through its own stage's share of the work.

No pipeline can reach it, for its second card has to wait for the first; with m micro-batches on two cards a perfect one
takes (m + 1) / m of this time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from bert import BertShape, FirstStage, LastStage, make_batch, make_bert, mean_loss
from torch import nn

Work = Callable[[], None]


class TwoThreads:
    """Both stages of the BERT, on the CPU, each with inputs of its own."""

    def __init__(self, shape: BertShape, first_layers: int) -> None:
        model, batch = make_bert(shape), make_batch(shape)
        self._first = FirstStage(model, first_layers)
        self._last = LastStage(model, first_layers)
        self._tokens, self._labels = batch["input_ids"], batch["labels"]
        self._hidden = torch.randn(shape.batch_size, shape.sequence_length, shape.hidden)

    def step(self, micro_batches: int) -> None:
        """One forward and backward of every micro-batch, forwards first as in a pipeline, on one core each."""
        threads = [
            threading.Thread(target=_on_one_core, args=(stage, micro_batches))
            for stage in (self._first_stage, self._last_stage)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _first_stage(self, micro_batches: int) -> None:
        _forget_gradients(self._first)
        outputs = [self._first(tokens) for tokens in self._tokens.chunk(micro_batches)]
        for output in outputs:
            output.backward(torch.ones_like(output))

    def _last_stage(self, micro_batches: int) -> None:
        _forget_gradients(self._last)
        parts = zip(self._hidden.chunk(micro_batches), self._labels.chunk(micro_batches), strict=True)
        losses = [mean_loss(self._last(hidden.detach().requires_grad_()), labels) for hidden, labels in parts]
        for loss in losses:
            (loss / micro_batches).backward()


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


def _on_one_core(stage: Callable[[int], None], micro_batches: int) -> None:
    torch.set_num_threads(1)
    stage(micro_batches)
