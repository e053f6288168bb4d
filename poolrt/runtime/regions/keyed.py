"""What the cards of a split layer drop, decided by the lead card's generator alone.

torch's checkpoint puts the generators back of the cards that its tensor arguments are on: the lead card. A replica that
drew from another card's generator would drop other entries when it runs again, and no error would tell.

    lead's generator  --state-->  key  --mix(key, 0)-->  card 0's generator, while card 0's replica runs
                                       --mix(key, 1)-->  card 1's generator, while card 1's replica runs

Afterwards the lead's generator is one draw further and the others are where they were. All of it is the host's work: a
CUDA generator's seed and offset are numbers on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import TypeVar

import torch
from torch import nn

from poolrt.runtime.random_state import generator_of, mixed

T = TypeVar("T")

_CUDA_STEP = 4
"""what one draw of up to four numbers moves a CUDA generator's offset by"""


def on_keyed_cards(body: Callable[[int], T], devices: Sequence[torch.device]) -> list[T]:
    """What `body(card)` returns for each card in order; each draws under a key of its own.

    While a CUDA graph captures nothing is keyed: seeds cannot be set then.

    Args:
        body: draws from the card's default generator only.
        devices: of the cards, the lead card's first; cards may share one.
    """
    if _captures(devices):
        return [body(card) for card in range(len(devices))]
    with _Keys(devices) as keys:
        results = [keys.under_key(card, body) for card in range(len(devices))]
        keys.advance()
    return results


class KeyedCards:
    """The cards of one split layer; they run under keys if the layer drops anything.

    Whether it does is read off its modules: dropouts, and rates by their name. Code that draws without such a sign is
    noticed by the first call in training, and the first in evaluation, which run under keys to see.
    """

    def __init__(self, module: nn.Module, devices: Sequence[torch.device], besides: str | None = None) -> None:
        """`besides` is the name of a dropout in `module` that no card runs."""
        self._module, self._devices = module, tuple(devices)
        self._dropping = [inner for name, inner in module.named_modules() if name != besides and _has_rate(inner)]
        self._seen: dict[bool, bool] = {}
        """whether the layer was seen to draw, in evaluation and in training"""

    def run(self, body: Callable[[int], T]) -> list[T]:
        """What `body(card)` returns for each card in order."""
        draws = any(module.training for module in self._dropping) or self._seen.get(self._module.training)
        if draws:
            return on_keyed_cards(body, self._devices)
        if draws is None and not _captures(self._devices):
            return self._run_watched(body)
        return [body(card) for card in range(len(self._devices))]

    def _run_watched(self, body: Callable[[int], T]) -> list[T]:
        """The same, and whether a card draws. If none does, this call leaves no trace: the next one may be without."""
        training = self._module.training
        with _Keys(self._devices) as keys:
            pairs = [keys.watched(card, body) for card in range(len(self._devices))]
            drawn = any(drew for _, drew in pairs)
            if drawn:
                keys.advance()
        if drawn or not torch._C._len_torch_function_stack():  # a mode may have taken dropout away
            self._seen[training] = drawn
        return [result for result, _ in pairs]


class _Keys:
    """A block in which each card's generator starts from its key; it is over with all generators as they were."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._lead = devices[0]
        self._generators = [generator_of(device) for device in devices]
        self._before = {id(generator): (generator, generator.get_state()) for generator in self._generators}
        self._key = int.from_bytes(blake2b(_state(self._generators[0]), digest_size=8).digest(), "little")
        self._advances = False

    def __enter__(self) -> _Keys:
        return self

    def under_key(self, card: int, body: Callable[[int], T]) -> T:
        """Run `body(card)` with the card's generator at its key."""
        self._generators[card].manual_seed(mixed((self._key, card)) >> 1)
        return body(card)

    def watched(self, card: int, body: Callable[[int], T]) -> tuple[T, bool]:
        """The same, and whether it drew."""

        def run(card: int) -> tuple[T, bool]:
            fresh = _state(self._generators[card])
            result = body(card)
            return result, _state(self._generators[card]) != fresh

        return self.under_key(card, run)

    def advance(self) -> None:
        """Have the lead's generator one draw further when the block is over."""
        self._advances = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for generator, state in self._before.values():
            generator.set_state(state)
        if self._advances and kind is None:
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


def _has_rate(module: nn.Module) -> bool:
    """Whether the module has a dropout's rate: of torch's own, or a number by such a name."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(_rates(module))


def _rates(module: nn.Module) -> Iterator[bool]:
    for name, value in module.__dict__.items():
        if "drop" in name and isinstance(value, float):
            yield 0 < value <= 1
