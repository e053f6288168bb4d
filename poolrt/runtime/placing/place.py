"""Placement: every parameter and buffer on its card, without changing an object the user holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.runtime.placing.caps import Caps
from poolrt.runtime.placing.spill import Spill
from poolrt.runtime.regions.running.traffic import Traffic
from poolrt.runtime.sharded.parameter import ShardedParameter
from poolrt.runtime.sharded.tensor import ShardedTensor
from poolrt.runtime.state.layers import Layer
from poolrt.runtime.state.slot import Slot
from poolrt.runtime.state.trees import map_tensors
from poolrt.transfer.move import move


class Placement:
    """The layers of `model` on their cards. A tied parameter lives with the first layer that uses it."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        card_of: Mapping[str, int],
        devices: Sequence[torch.device],
        caps: Caps | None = None,
    ) -> None:
        self.caps = caps
        self.traffic = Traffic()
        """the copies that split layers make between cards"""
        self.together: dict[int, tuple[int, ...]] = {}
        """lead card to all cards of its stage, itself first, where there are several"""
        self.model = model
        self.layers = tuple(layers)
        self.devices = tuple(devices)
        self.card_of_layer = {layer.module: card_of[layer.name] for layer in layers}
        self.first_card = card_of[layers[0].name] if layers else 0
        self.card_of_module = self._module_cards()
        self.home: dict[int, int] = {}
        """id of a parameter or buffer to the card it lives on"""

    def card_of(self) -> dict[str, int]:
        """Layer name to card index."""
        return {layer.name: self.card_of_layer[layer.module] for layer in self.layers}

    def _module_cards(self) -> dict[nn.Module, int]:
        cards = dict.fromkeys(self.model.modules(), self.first_card)
        for layer in reversed(self.layers):
            for module in layer.module.modules():
                cards[module] = self.card_of_layer[layer.module]
        return cards

    def apply(self, spill: Spill | None = None) -> None:
        """Move every parameter (its gradient with it) and buffer to its card; objects stay the same.

        Args:
            spill: takes the weights of the layers that the plan spills.
        """
        self.home.clear()
        moved: dict[tuple[int, torch.device], Tensor] = {}  # what two modules share, they share afterwards
        spilled: dict[int, tuple[int, nn.Parameter, int]] = {}  # a tied one once
        for module, card, layer in self._in_layer_order():
            rank = spill.rank(layer, card) if spill is not None else None
            for parameter in module._parameters.values():
                if parameter is None or self.home.setdefault(id(parameter), card) != card:
                    continue
                if rank is None or isinstance(parameter, ShardedParameter):
                    self._move(parameter, card)
                else:
                    spilled.setdefault(id(parameter), (rank, parameter, card))
            for holder, name, tensor in _held_tensors(module):
                key = (id(tensor), self.devices[card])
                if key not in moved:
                    with self.on(card):
                        moved[key] = move(tensor, key[1]) if rank is None or spill is None else spill.copy(tensor, card)
                holder[name] = moved[key]
        for _rank, parameter, card in sorted(spilled.values(), key=lambda entry: entry[0]):
            assert spill is not None
            spill.take(parameter, card)

    def on(self, card: int) -> AbstractContextManager[None]:
        """Meanwhile this thread allocates for `card`."""
        return nullcontext() if self.caps is None else self.caps.on(card)

    def _move(self, parameter: nn.Parameter, card: int) -> None:
        if isinstance(parameter, ShardedParameter):
            return  # its pieces are where they belong
        if self.caps is not None and parameter.device == self.devices[card]:
            with torch.no_grad():  # perhaps in another card's share of the same device
                parameter.data = parameter.data.cpu()
        with self.on(card):
            move_parameter(parameter, self.devices[card])

    def _in_layer_order(self) -> Iterator[tuple[nn.Module, int, str]]:
        """(module, card, name of the layer it is part of, "" if of none)."""
        for layer in self.layers:
            for module in layer.module.modules():
                yield module, self.card_of_layer[layer.module], layer.name
        placed = {module for layer in self.layers for module in layer.module.modules()}
        for module in self.model.modules():
            if module not in placed:
                yield module, self.first_card, ""

    def to_first_card(self, value: Any) -> Any:
        """`value`, a batch say, with its tensors on the card where the model begins."""
        device = self.devices[self.first_card]
        return map_tensors(value, lambda tensor: move(tensor, device))

    @property
    def hooked_layers(self) -> Sequence[Layer]:
        """Layers whose calls are to be seen."""
        return self.layers

    def install(self) -> None:
        """Put what the placement needs on the modules, which are bare: nothing for whole layers."""

    def uninstall(self) -> None:
        """Take it off."""

    def undo(self) -> None:
        """Parameters as they were before the placement changed what they are; where they lie is another's to undo."""

    def slots(self) -> list[Slot]:
        """Every place where a parameter stands."""
        return [
            Slot(module, name, card)
            for module, card in self.card_of_module.items()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def owner_of(self, tensor: nn.Parameter) -> tuple[nn.Parameter, int | None]:
        """The user's parameter of which this is a piece, and the piece's position; itself and None for a whole one."""
        return tensor, None

    def weight_nbytes(self) -> list[int]:
        """Bytes of parameters and buffers on each card now; what is not on its card is not counted."""
        cards: dict[int, tuple[Tensor, int]] = {}
        for module, card in self.card_of_module.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    cards.setdefault(id(tensor), (tensor, self.home.get(id(tensor), card)))
        return self._by_card(cards.values())

    def gradient_nbytes(self) -> list[int]:
        """Bytes of gradients on each card now."""
        return self._by_card(
            (parameter.grad, self.home.get(id(parameter), self.first_card))
            for parameter in self.model.parameters()
            if parameter.grad is not None
        )

    def _by_card(self, tensors: Iterable[tuple[Tensor, int]]) -> list[int]:
        """Sums of (tensor, card it is placed on)."""
        totals = [0] * len(self.devices)
        for tensor, home in tensors:
            parts = tensor.pieces if isinstance(tensor, ShardedTensor) else (tensor,)
            for card, part in zip(self.together.get(home, (home,)), parts, strict=False):
                totals[card] += part.nbytes if part.device == self.devices[card] else 0
        return totals


class WeightsBefore:
    """Where a model's parameters and buffers were, to put them back."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [(parameter, parameter.device) for parameter in model.parameters()]
        self._tensors = [held for module in model.modules() for held in _held_tensors(module)]

    def restore(self) -> None:
        """Every parameter to its device, and the very buffers."""
        for parameter, device in self._parameters:
            move_parameter(parameter, device)
        for holder, name, tensor in self._tensors:
            holder[name] = tensor


def _held_tensors(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """(holder, name, tensor) of buffers, and of tensors kept as plain attributes: constants of the forward."""
    return [
        (holder, name, value)
        for holder in (module._buffers, module.__dict__)
        for name, value in holder.items()
        if isinstance(value, Tensor)
        and not (value.grad_fn is not None or value.is_meta or isinstance(value, nn.Parameter))
    ]


def move_parameter(parameter: nn.Parameter, device: torch.device) -> None:
    """Give `parameter` its bytes on `device`; the object, its name and whoever shares it stay."""
    if parameter.device == device:
        return
    with torch.no_grad():
        gradient = parameter.grad
        parameter.grad = None
        parameter.data = move(parameter.data, device)
        if gradient is not None:
            parameter.grad = move(gradient, device)


def tensors_on_meta(model: nn.Module) -> list[str]:
    """Names of parameters and buffers without storage."""
    return [name for name, tensor in named_tensors(model) if tensor.is_meta]


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers."""
    return [*model.named_parameters(), *model.named_buffers()]
