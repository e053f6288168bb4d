"""One layer of a key-value cache whose heads lie on several cards; to who holds the cache it is one layer still.

    to a card's replica    a layer of the same class with the card's heads
    to the user            .keys                the cards' keys, put together on the lead card whenever they are read
                           .keys = tensor       cut, and dealt out
                           .crop(-2)            done on every card, as all methods are
                           .get_seq_length()    the lead card's answer

What is read whole is a copy, and the reader's own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.regions.plan import CacheSplit
from poolrt.runtime.regions.running.heads import cut_heads, joined_heads
from poolrt.runtime.state.trees import flatten, map_tensors

_WITH_HEADS = ("keys", "values")


def in_parts(layer: Any, devices: Sequence[torch.device], split: CacheSplit | None) -> Any:
    """A layer of a cache, empty or filled, as one whose heads lie on all cards. `layer` itself is not changed.

    Args:
        layer: of a cache as transformers has them.
        devices: of the cards, the lead card's first.
        split: of its keys and values; None if that is not known: they cannot be read whole then.

    Raises:
        ModelError: if it is filled in a way that cannot be cut.
    """
    kept = [name for name, value in vars(layer).items() if _has_size(value)]
    if kept and (split is None or not set(kept) <= set(_WITH_HEADS)):
        raise ModelError(
            f"a {type(layer).__name__} that holds {' and '.join(kept)} of all heads already cannot be dealt out over "
            "cards; begin with an empty cache"
        )
    own: dict[str, Sequence[Any]] = {
        name: cut_heads(vars(layer)[name], split.keys if name == "keys" else split.values, devices)
        for name in kept
        if split is not None
    }
    parts = tuple(
        _copied(layer, device, {name: pieces[card] for name, pieces in own.items()})
        for card, device in enumerate(devices)
    )
    own_class: type = type(layer)
    return _shown(_class_in_parts(own_class), parts, tuple(devices), split)


def is_in_parts(layer: Any) -> bool:
    """Whether the layer was made by `in_parts`."""
    return issubclass(type(layer), _InParts)


class _InParts:
    """What a layer on several cards does in its own way; it stands before the layer's own class."""

    _parts: tuple[Any, ...]
    _devices: tuple[torch.device, ...]
    _split: CacheSplit | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Not as its base classes: transformers keeps a list of the kinds of layers there are, and this is none."""

    # ---- for regions

    def part(self, card: int) -> Any:
        """The layer of one card: with its heads."""
        return self._parts[card]

    def lies_on(self, devices: Sequence[torch.device], split: CacheSplit | None) -> bool:
        """Whether these are its cards, and the heads are dealt out over them like this."""
        return self._devices == tuple(devices) and self._split == split

    def whole(self) -> Any:
        """An ordinary layer with all heads, on the lead card."""
        return _copied(self._parts[0], self._devices[0], {name: getattr(self, name) for name in _WITH_HEADS})

    # ---- for who looks into values

    def apart(self) -> tuple[Any, ...]:
        """The cards' layers."""
        return self._parts

    def together(self, parts: tuple[Any, ...]) -> Any:
        """The same layer with these in place of its own, where they are now."""
        devices = [_device_of(part, device) for part, device in zip(parts, self._devices, strict=True)]
        return _shown(type(self), parts, tuple(devices), self._split)

    # ---- as one layer

    keys = property(lambda self: self._read("keys"), lambda self, whole: self._write("keys", whole))
    values = property(lambda self: self._read("values"), lambda self, whole: self._write("values", whole))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys and values with all heads, and give all there are."""
        given = zip(self._parts, self._cut("keys", key_states), self._cut("values", value_states), strict=True)
        keys, values = zip(*(part.update(k, v, *args, **kwargs) for part, k, v in given), strict=True)
        return self._joined("keys", keys), self._joined("values", values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for keys and values with all heads of this form."""
        given = zip(self._parts, self._cut("keys", key_states), self._cut("values", value_states), strict=True)
        for part, keys, values in given:
            part.lazy_initialization(keys, values)

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN or name.startswith("__"):
            return object.__getattribute__(self, name)
        lead, split = self._parts[0], self._split
        value = getattr(lead, name)
        if isinstance(value, MethodType) and value.__self__ is lead:
            return functools.partial(_of_all, self._parts, self._devices, name)
        if name == "num_heads" and split is not None and split.keys is not None:
            return split.keys.size
        if _has_size(value):
            raise ModelError(f"{name} of this layer of a cache lies on all cards: only keys and values are read whole")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._write(name, value)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # what vars() shows: as if it were one
        shown = dict(vars(self._parts[0]))
        if self._split is None:
            return {name: value for name, value in shown.items() if name not in _WITH_HEADS}
        return {**shown, **{name: getattr(self, name) for name in shown if name in (*_WITH_HEADS, "num_heads")}}

    # ---- copies are in parts as well, pickles are whole

    def __copy__(self) -> Any:
        return _shown(type(self), tuple(map(copy.copy, self._parts)), self._devices, self._split)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _shown(type(self), copy.deepcopy(self._parts, memo), self._devices, self._split)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copy.copy, (self.whole(),)

    # ---- heads

    def _split_of(self, name: str) -> Split | None:
        if self._split is None:
            raise ModelError(
                f"the {name} of this layer of a cache lie on all cards, and it is not known which heads are where: "
                "they cannot be read or set whole"
            )
        return self._split.keys if name == "keys" else self._split.values

    def _read(self, name: str) -> Tensor | None:
        pieces = [getattr(part, name) for part in self._parts]
        return None if pieces[0] is None else self._joined(name, pieces)

    def _write(self, name: str, value: Any) -> None:
        cut = name in _WITH_HEADS and isinstance(value, Tensor)
        pieces = self._cut(name, value) if cut else [_moved(value, device) for device in self._devices]
        for part, piece in zip(self._parts, pieces, strict=True):
            setattr(part, name, piece)

    def _cut(self, name: str, whole: Tensor) -> list[Tensor]:
        return cut_heads(whole, self._split_of(name), self._devices)

    def _joined(self, name: str, pieces: Sequence[Tensor]) -> Tensor:
        return joined_heads(pieces, self._split_of(name), self._devices[0])


_OWN = frozenset({*vars(_InParts), *_InParts.__annotations__})


@functools.cache
def _class_in_parts(own: type) -> type:
    return type(own)(own.__name__, (_InParts, own), {"__module__": own.__module__})


def _shown(kind: type, parts: tuple[Any, ...], devices: tuple[torch.device, ...], split: CacheSplit | None) -> Any:
    shown: Any = object.__new__(kind)
    for name, value in (("_parts", parts), ("_devices", devices), ("_split", split)):
        object.__setattr__(shown, name, value)
    return shown


def _copied(layer: Any, device: torch.device, own: dict[str, Any]) -> Any:
    """A copy of an ordinary layer on a card, with values of its own."""
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if name not in own and name not in _WITH_HEADS:
            setattr(copied, name, _moved(value, device, copy_tensors=True))
    for name, value in own.items():
        setattr(copied, name, value)
    keys = own.get("keys")
    if isinstance(keys, Tensor) and keys.dim() > 1 and "num_heads" in vars(layer):
        copied.num_heads = keys.shape[1]
    return copied


def _moved(value: Any, device: torch.device, copy_tensors: bool = False) -> Any:
    """A value of a layer as a card has it: tensors there, containers of its own, the name of the device changed."""
    if isinstance(value, torch.device):
        return device
    if isinstance(value, (dict, list, set)) and not flatten(value).tensors:
        return copy.copy(value)
    return map_tensors(value, lambda tensor: tensor.to(device, copy=copy_tensors))


def _of_all(parts: Sequence[Any], devices: Sequence[torch.device], name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of every part, with what it is given on the part's card; the lead card's answer."""
    answers = []
    for part, device in zip(parts, devices, strict=True):
        own_args, own_kwargs = _moved((args, kwargs), device)
        answers.append(getattr(part, name)(*own_args, **own_kwargs))
    return answers[0]


def _device_of(part: Any, otherwise: torch.device) -> torch.device:
    """Where a card's layer keeps its keys."""
    keys = getattr(part, _WITH_HEADS[0], None)
    return keys.device if isinstance(keys, Tensor) else otherwise


def _has_size(value: Any) -> bool:
    """Whether tensors with dimensions are in it: more than a count."""
    return any(tensor.dim() and tensor.numel() for tensor in flatten(value).tensors)
