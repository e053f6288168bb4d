"""Into how many micro-batches a batch is cut: as many as planned, if whole against split has shown that it may be."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from poolrt.runtime.batches.batch_form import form_of
from poolrt.runtime.batches.microbatch import Call, OutputRule, batch_size_of
from poolrt.runtime.lanes.machine import Machine
from poolrt.runtime.lanes.orders import CardOrders
from poolrt.runtime.measuring.split_check import Verdict, check_split
from poolrt.runtime.state.trees import flatten

_PATIENCE = 3
"""batches of one form that may run twice, because they cannot be merged, before all of that form stay whole"""
_ONE_SAMPLE = Verdict(why_not="it has a single sample")
_STATE = Verdict(why_not="it carries an object with a state of its own (a cache, say)")


class SplitWarning(UserWarning):
    """The batch stays whole, or is split into fewer parts than asked for; the message says why."""


@dataclass(frozen=True)
class Cut:
    """Into how many parts, and how the outputs come together (None for one part)."""

    parts: int
    rules: Sequence[OutputRule] | None = None


class Splitting:
    """Decides for each batch. A verdict is reached once per form of batch and kept."""

    def __init__(self, batch_dim: int) -> None:
        self._batch_dim = batch_dim
        self._verdicts: dict[Hashable, Verdict] = {}
        self._failures: Counter[Hashable] = Counter()
        self._warned: set[str] = set()

    def adopt(self, machine: Machine, orders: CardOrders, micro_batches: int) -> None:
        """Work with this placement and this plan from now on."""
        self._machine, self._orders, self._micro_batches = machine, orders, micro_batches

    def cut(self, call: Call) -> Cut:
        """How to cut this batch."""
        if self._micro_batches == 1:
            return Cut(1)
        verdict = self.verdict(call)
        return Cut(1) if verdict.why_not else Cut(self._parts(call), verdict.rules)

    def verdict(self, call: Call) -> Verdict:
        """Whether batches of this form may be split."""
        if self._parts(call) == 1:
            return _ONE_SAMPLE
        form = form_of(self._machine.placement.model, call, self._batch_dim)
        if form not in self._verdicts:
            self._verdicts[form] = self._judge(call)
        return self._verdicts[form]

    def failed(self, call: Call, reason: str) -> None:
        """This batch was cut, and its outputs cannot be merged. After some such batches all of the form stay whole."""
        form = form_of(self._machine.placement.model, call, self._batch_dim)
        self._failures[form] += 1
        if self._failures[form] < _PATIENCE:
            self.warn(f"this batch runs again, whole: {reason}")
        else:
            self.warn(f"this batch runs again, whole, and from now on all like it stay whole: {reason}")
            self._verdicts[form] = Verdict(why_not=reason)

    def _judge(self, call: Call) -> Verdict:
        if flatten(call).has_state:
            return _STATE
        parts = self._parts(call)
        orders = {count: self._orders.of(count)[0] for count in range(1, parts + 1)}
        return check_split(self._machine, self._machine.placement.to_first_card(call), orders, parts, self._batch_dim)

    def _parts(self, call: Call) -> int:
        batch_size = batch_size_of(call, self._batch_dim) or 1
        if batch_size < self._micro_batches:
            self.warn(
                f"a batch of {batch_size} cannot be cut into {self._micro_batches} micro-batches; "
                f"it is cut into {batch_size}"
            )
        return min(self._micro_batches, batch_size)

    def warn(self, message: str) -> None:
        """Say it once."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"poolrt: {message}", SplitWarning, stacklevel=2)
