"""What is changed of a module after it was split, taken over by the cards' replicas of it.

    dropout.p = 0.2             the replicas drop as much
    model.eval()                they are in evaluation
    buffer.copy_(...)           each card's copy is made anew
    attention.num_heads = 4     refused: the layer is cut by it
    attention.q = LoRA(...)     refused: the cards have pieces of what was there

Every call looks for changes, so that nothing has to be called for it; what stayed is told by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from reprlib import repr as shortened
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.runtime.regions.plan import Rewrite, parameter_splits
from poolrt.runtime.state.paths import joined
from poolrt.transfer.move import moved

_ABSENT = object()
_OWN = frozenset({"forward", "_compiled_call_impl"})
"""what runs a module: never the same for a replica"""


class Followed:
    """A split module that its replicas follow.

    Args:
        module: the user's.
        rewrite: of it.
        replicas: one for each card, as the rewrite made them; what they have otherwise than the module stays theirs.
        devices: of the cards.
    """

    def __init__(
        self,
        module: nn.Module,
        rewrite: Rewrite,
        replicas: Sequence[nn.Module] = (),
        devices: Sequence[torch.device] = (),
    ) -> None:
        names, originals = zip(*module.named_modules(prefix=rewrite.module), strict=True)
        split = {joined(rewrite.module, parameter) for parameter in parameter_splits(rewrite)}
        copies = list(zip(*(replica.modules() for replica in replicas), strict=True)) or [()] * len(originals)
        self._values = [
            values
            for name, original, replicated in zip(names, originals, copies, strict=True)
            for values in _values_of(name, original, split, replicated)
        ]
        self._buffers = [
            _Buffers(original, replicated, devices)
            for original, replicated in zip(originals, copies, strict=True)
            if original._buffers
        ]

    def follow(self) -> None:
        """Let the replicas have what was changed since.

        Raises:
            ModelError: if pieces depend on what was changed; it is raised again until that is put back.
        """
        for values in self._values:
            if not values.are_as_seen():
                values.follow()
        for buffers in self._buffers:
            buffers.follow()


def _values_of(name: str, original: nn.Module, split: set[str], replicas: Sequence[nn.Module]) -> Iterator[_Values]:
    """What a module holds, but for buffers; `split` are the names of parameters that lie in pieces."""
    if original._modules:
        yield _Values(name, original._modules, fixed=original._modules)
    in_pieces = {leaf for leaf in original._parameters if joined(name, leaf) in split}
    if in_pieces:
        yield _Values(name, original._parameters, fixed=in_pieces)
    replicas = [replica for replica in replicas if type(replica) is type(original)]  # another does without it
    if replicas:
        yield _following(name, original, replicas)
    config = original.__dict__.get("config")
    configs = [replica.__dict__["config"] for replica in replicas if config is not None]
    if any(copied is not config for copied in configs):
        yield _following(f"{name}.config", config, configs)


def _following(name: str, original: Any, copies: Sequence[Any]) -> _Values:
    """Attributes of an object that others follow; what one of them has otherwise stays."""
    values, followers = vars(original), [vars(each) for each in copies]
    fixed = {key for key, value in values.items() if any(own.get(key, _ABSENT) is not value for own in followers)}
    return _Values(name, values, fixed, followers)


class _Values:
    """Values by name, those of who follows, and the names of which nothing may change."""

    def __init__(
        self, owner: str, now: dict[str, Any], fixed: Iterable[str], followers: Sequence[dict[str, Any]] = ()
    ) -> None:
        self._owner, self._now, self._fixed, self._followers = owner, now, frozenset(fixed), followers
        self._seen = self._without_own()

    def are_as_seen(self) -> bool:
        now, seen = self._now, self._seen  # the split forward was put in last
        return len(now) == len(seen) + ("forward" in now) and all(map(is_, seen.values(), now.values()))

    def follow(self) -> None:
        now = self._without_own()
        changed = [name for name in {**self._seen, **now} if self._differs(name, now)]
        for name in self._fixed.intersection(changed):
            raise ModelError(self._sentence(name))
        for own in self._followers:
            own.update({name: now[name] for name in changed if name in now})
            for name in changed:
                if name not in now:
                    own.pop(name, None)
        self._seen = now

    def _without_own(self) -> dict[str, Any]:
        """The values there are; of the split forward, which leads back here, nothing is kept."""
        return {name: value for name, value in self._now.items() if name not in _OWN}

    def _differs(self, name: str, values: dict[str, Any]) -> bool:
        """Told by identity; numbers and names by what they say."""
        before, now = self._seen.get(name, _ABSENT), values.get(name, _ABSENT)
        plain = type(before) is type(now) and isinstance(now, (int, float, str))
        return before != now if plain else before is not now

    def _sentence(self, name: str) -> str:
        before, now = (_shown(values.get(name, "nothing")) for values in (self._seen, self._now))
        return (
            f"{self._owner}.{name} was changed after the model was split over cards, from {before} to {now}, and the "
            "cards hold pieces of what was there: put it back, or make the change before poolrt.shard"
        )


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (Tensor, nn.Module)) else shortened(value)


class _Buffers:
    """A module's buffers, and the cards' copies of them."""

    def __init__(self, original: nn.Module, replicas: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
        self._original, self._copies = original, list(zip(replicas, devices, strict=True))
        self._seen: dict[str, tuple[Tensor | None, int]] = {}
        self.follow()

    def follow(self) -> None:
        for name, buffer in self._original._buffers.items():
            seen, version = self._seen.get(name), _version(buffer)
            if seen is None or seen[0] is not buffer or seen[1] != version:
                for replica, device in self._copies:
                    replica._buffers[name] = None if buffer is None else moved(buffer, device)
                self._seen[name] = buffer, version


def _version(tensor: Tensor | None) -> int:
    """A number that every change in place makes larger, where the tensor has one."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
