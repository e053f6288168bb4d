"""What the cards of a split layer drop, decided by the lead card's generator alone.

torch's checkpoint puts the generators back of the cards that its tensor arguments are on: the lead card. A replica that
drew from another card's generator would drop other entries when it runs again, and no error would tell.

    lead's generator  --state-->  key  --mix(key, 0)-->  card 0's generator, while card 0's replica runs
                                       --mix(key, 1)-->  card 1's generator, while card 1's replica runs

Afterwards the lead's generator is one draw further and the others are where they were. All of it is the host's work: a
CUDA generator's seed and offset are numbers on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from poolrt.runtime.state.generators import generator_of, mixed

T = TypeVar("T")

_CUDA_STEP = 4
"""what one draw of up to four numbers moves a CUDA generator's offset by"""


def on_keyed_cards(body: Callable[[int], T], devices: Sequence[torch.device]) -> tuple[list[T], bool]:
    """What `body(card)` returns for each card in order, and whether one of them drew; each draws under its own key.

    If none draws no generator moves. While a CUDA graph captures nothing is keyed: seeds cannot be set then.

    Args:
        body: draws from the card's default generator only.
        devices: of the cards, the lead card's first; cards may share one.
    """
    if _captures(devices):
        return [body(card) for card in range(len(devices))], True
    with _Keys(devices) as keys:
        return [keys.run(card, body) for card in range(len(devices))], keys.drawn


class KeyedCards:
    """The cards of one split layer; they run under keys if the layer drops anything.

    Whether it does is read off its modules in every call: dropouts, and rates by their name. Code that draws without
    such a sign is noticed by the first call in training, and the first in evaluation, which run under keys to see.
    """

    def __init__(self, module: nn.Module, devices: Sequence[torch.device], besides: str | None = None) -> None:
        """`besides` is the name of a dropout in `module` that no card runs."""
        self._module, self._devices = module, tuple(devices)
        self._rates = rates_in(module, besides)
        self._seen: dict[bool, bool] = {}
        """whether the layer was seen to draw, in evaluation and in training"""

    def run(self, body: Callable[[int], T]) -> list[T]:
        """What `body(card)` returns for each card in order."""
        training = self._module.training
        if self._seen.get(training) is False and not any(rate.drops_now for rate in self._rates):
            return [body(card) for card in range(len(self._devices))]
        results, drawn = on_keyed_cards(body, self._devices)
        if drawn or not torch._C._len_torch_function_stack():  # a mode may have taken dropout away
            self._seen[training] = drawn or self._seen.get(training, False)
        return results


class _Keys:
    """A block in which each card's generator starts from its key.

    Afterwards the generators are as they were, but for the lead's if a card drew: it is one draw further.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.drawn = False
        """whether a card has drawn"""
        self._lead = devices[0]
        self._generators = [generator_of(device) for device in devices]
        self._before = {id(generator): (generator, generator.get_state()) for generator in self._generators}
        self._key = int.from_bytes(blake2b(_state(self._generators[0]), digest_size=8).digest(), "little")

    def __enter__(self) -> _Keys:
        return self

    def run(self, card: int, body: Callable[[int], T]) -> T:
        """What `body(card)` returns, with the card's generator at its key."""
        generator = self._generators[card]
        generator.manual_seed(mixed((self._key, card)) >> 1)
        fresh = None if self.drawn else _state(generator)
        result = body(card)
        self.drawn = fresh is None or _state(generator) != fresh
        return result

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for generator, state in self._before.values():
            generator.set_state(state)
        if self.drawn and kind is None:
            _step(self._generators[0], self._lead)


def _state(generator: torch.Generator) -> bytes:
    return generator.get_state().numpy().tobytes()


def _step(generator: torch.Generator, device: torch.device) -> None:
    """One draw, without waiting for a GPU."""
    if device.type == "cuda":
        generator.set_offset(generator.get_offset() + _CUDA_STEP)
    else:
        torch.randint(2, (), device=device)


def _captures(devices: Sequence[torch.device]) -> bool:
    return devices[0].type == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class Rate:
    """Where a module says how much it drops while it trains."""

    module: nn.Module
    attribute: str

    @property
    def is_positive(self) -> bool:
        """Whether anything is dropped at this rate."""
        rate = self.module.__dict__.get(self.attribute)
        return isinstance(rate, (int, float)) and 0 < rate <= 1

    @property
    def drops_now(self) -> bool:
        """Whether the module drops something in its present mode."""
        return self.module.training and self.is_positive


def rates_in(module: nn.Module, besides: str | None = None) -> list[Rate]:
    """Where it and the modules in it say how much they drop: torch's dropouts, and numbers by such a name.

    Args:
        module: any.
        besides: the name of a module in it that does not count.
    """
    inner = (inner for name, inner in module.named_modules() if name != besides)
    return [Rate(each, name) for each in inner for name, value in each.__dict__.items() if _is_rate(each, name, value)]


def _is_rate(module: nn.Module, name: str, value: Any) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd) and name == "p":
        return True
    return "drop" in name and isinstance(value, float)
