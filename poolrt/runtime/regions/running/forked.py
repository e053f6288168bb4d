"""A module that runs on every card at once: each card's replica on the card's pieces.

forward(x)      x  --fork-->  replica 0 (card 0's pieces)  --.
replica 1 (card 1's pieces)  --join--> output on the lead card
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.regions.plan import Forked, InputSplit, Joining
from poolrt.runtime.regions.replica import parameter_of, put_attribute, put_parameters, replicate, slot_of
from poolrt.runtime.regions.running.card_caches import cache_on_card, is_cache
from poolrt.runtime.regions.running.followed import Followed
from poolrt.runtime.regions.running.keyed import KeyedCards
from poolrt.runtime.regions.running.parted import part_together
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic
from poolrt.runtime.state.slot import Slot
from poolrt.runtime.state.trees import flatten, is_plain
from poolrt.transfer.collectives.exchange import Exchange
from poolrt.transfer.move import moved

Pieces = Callable[[Tensor], Sequence[Tensor]]
"""pieces(parameter): one tensor per card, each on its card; leaves where they are trained"""


class ForkedModule:
    """The forward of a forked module."""

    def __init__(
        self,
        module: nn.Module,
        rewrite: Forked,
        devices: Sequence[torch.device],
        pieces: Pieces,
        traffic: Traffic = UNCOUNTED,
    ) -> None:
        self._rewrite, self._devices, self._traffic = rewrite, tuple(devices), traffic
        self.replicas = [replica_for(module, rewrite, card, devices, pieces) for card in range(len(devices))]
        self._followed = Followed(module, rewrite, self.replicas, devices)
        self._dropout = module.get_submodule(rewrite.dropout_after) if rewrite.dropout_after else None
        self._inputs = {part.path: part for part in rewrite.inputs}
        self._keyed = KeyedCards(module, devices, besides=rewrite.dropout_after)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, from what all cards made of the same arguments.

        Raises:
            ModelError: if something was changed after the split that the pieces depend on.
        """
        self._followed.follow()
        with self._traffic.exchange(self._devices) as exchange:
            calls = self._fork(exchange, args, kwargs)

            def on_card(card: int) -> Any:
                exchange.land(card)
                given, named = calls[card]
                return self._leaving(exchange, card, self.replicas[card](*given, **named))

            return self._join(exchange, self._keyed.run(on_card))

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read, and parameters of the lead card."""
        names = [(name, card) for name in self._rewrite.splits for card in range(len(self.replicas))]
        lead = [(name, 0) for name in self._rewrite.lead]
        return [slot_of(self.replicas[card], name, card) for name, card in (*names, *lead)]

    def _fork(self, exchange: Exchange, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arguments as each card reads them."""
        if not self._inputs and is_plain((args, kwargs), lambda tensor: True):
            return self._copies(exchange, (args, kwargs))
        tree = flatten((args, kwargs))
        by_leaf = [self._to_cards(exchange, leaf.tensor, self._inputs.get(leaf.path)) for leaf in tree.leaves]
        calls = [tree.rebuild(tensors[card] for tensors in by_leaf) for card in range(len(self._devices))]
        return self._with_caches(calls) if tree.has_state else calls

    def _copies(self, exchange: Exchange, value: Any) -> list[Any]:
        """The same as taking it apart, for plain tuples, lists, dicts and constants."""
        kind = type(value)
        if isinstance(value, Tensor):
            return list(exchange.fork(value))
        if kind is dict:
            columns = [self._copies(exchange, part) for part in value.values()]
        elif kind is tuple or kind is list:
            columns = [self._copies(exchange, part) for part in value]
        else:
            return [value] * len(self._devices)
        rows = [[column[card] for column in columns] for card in range(len(self._devices))]
        return [dict(zip(value, row, strict=True)) if kind is dict else kind(row) for row in rows]

    def _with_caches(self, calls: list[Any]) -> list[Any]:
        """Each card with its own of the caches among the arguments."""

        def own(value: Any, card: int) -> Any:
            return cache_on_card(value, card, self._devices, self._rewrite.cache) if is_cache(value) else value

        return [
            (tuple(own(value, card) for value in args), {name: own(value, card) for name, value in kwargs.items()})
            for card, (args, kwargs) in enumerate(calls)
        ]

    def _to_cards(self, exchange: Exchange, tensor: Tensor, part: InputSplit | None) -> Sequence[Tensor]:
        if part is None or tensor.shape[part.split.dim] == 1:
            return exchange.fork(tensor)
        cards = range(len(self._devices))
        indices = [moved(index_of(part, tensor, card), tensor.device) for card in cards]
        return exchange.deal([tensor.index_select(part.split.dim, index) for index in indices])

    def _leaving(self, exchange: Exchange, card: int, output: Any) -> Any:
        """The output of a card's replica, on its way to the lead card as far as it is needed there."""
        if type(output) is Tensor:
            return exchange.leave(card, output) if _is_sent(self._rewrite.outputs[0]) else output
        tree, ways = flatten(output), self._rewrite.outputs
        return tree.rebuild(
            exchange.leave(card, tensor) if _is_sent(how) else tensor
            for tensor, how in zip(tree.tensors, ways, strict=True)
        )

    def _join(self, exchange: Exchange, outputs: Sequence[Any]) -> Any:
        if self._dropout is None and type(outputs[0]) is Tensor:
            return self._joined(exchange, list(outputs), self._rewrite.outputs[0])
        trees = [flatten(output) for output in outputs]
        joined = [
            self._joined(exchange, [tree.leaves[place].tensor for tree in trees], how)
            for place, how in enumerate(self._rewrite.outputs)
        ]
        if self._dropout is not None:
            joined[0] = self._dropout(joined[0])
        return trees[0].rebuild(joined)

    def _joined(self, exchange: Exchange, parts: list[Tensor], how: Joining) -> Tensor:
        if how == "sum":
            return exchange.join(parts)
        if how == "same":
            return parts[0]
        if how == "parts":
            return part_together(parts, self._devices[0], traffic=self._traffic)
        return torch.cat(exchange.gather(parts), how)


def _is_sent(how: Joining) -> bool:
    return how == "sum" or isinstance(how, int)


def replica_for(
    module: nn.Module, rewrite: Forked, card: int, devices: Sequence[torch.device], pieces: Pieces
) -> nn.Module:
    """The module as `card` runs it, but for its buffers."""
    replica, device = replicate(module), devices[card]
    own = {name: pieces(parameter_of(module, name))[card] for name in rewrite.splits}
    for name in rewrite.lead:
        parameter = parameter_of(module, name)
        own[name] = parameter if card == 0 else torch.zeros_like(parameter, device=device, requires_grad=False)
    put_parameters(replica, own)
    for change in rewrite.attributes:
        put_attribute(replica, change.path, change.in_config, change.name, change.values[card])
    if rewrite.dropout_after:
        path, _, leaf = rewrite.dropout_after.rpartition(".")
        replica.get_submodule(path)._modules[leaf] = nn.Identity()
    return replica


def index_of(part: InputSplit, tensor: Tensor, card: int) -> Tensor:
    """Which indices of an argument a card reads.

    Raises:
        ModelError: if the dimension is no whole number of periods.
    """
    size, period = tensor.shape[part.split.dim], part.split.size
    if size % period:
        raise ModelError(
            f"argument {part.path} of a split layer has {size} entries in dimension {part.split.dim}, "
            f"which is no multiple of {period}; shard the model with a sample of this form"
        )
    one = torch.tensor(part.split.indices(card))
    return (torch.arange(size // period).unsqueeze(-1) * period + one).flatten()


def sliced(tensor: Tensor, split: Split, card: int) -> Tensor:
    """The piece of `tensor` that `card` holds; a view where it is one range, else a copy."""
    ranges = split.pieces[card]
    runs = [tensor.narrow(split.dim, start, stop - start) for start, stop in ranges]
    return runs[0] if len(runs) == 1 else torch.cat(runs or [tensor.narrow(split.dim, 0, 0)], split.dim)


def gathered(pieces: Sequence[Tensor], split: Split, like: Tensor) -> Tensor:
    """The sum of what every card has at each place of a tensor of the shape of `like`: the inverse of `sliced`."""
    total = torch.zeros_like(like)
    for card, piece in enumerate(pieces):
        start = 0
        for first, last in split.pieces[card]:
            total.narrow(split.dim, first, last - first).add_(piece.narrow(split.dim, start, last - first))
            start += last - first
    return total
