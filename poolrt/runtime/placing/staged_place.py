"""Where the bytes of a model lie whose stages are several cards each.

    stage 0   card 0: pieces 0, other parameters, buffers     card 1: pieces 1
    stage 1   card 2: pieces 0, other parameters, buffers     card 3: pieces 1

Every object stays the user's. The rewrites of the regions are on the modules between `install` and `uninstall`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from poolrt.runtime.placing.caps import Caps
from poolrt.runtime.placing.place import Placement
from poolrt.runtime.placing.spill import Spill
from poolrt.runtime.placing.stages import SplitStage
from poolrt.runtime.regions.running.install import Installed
from poolrt.runtime.sharded.model import shard_parameters, unshard_parameters
from poolrt.runtime.sharded.parameter import ShardedParameter, pieces
from poolrt.runtime.sharded.sharding import Allocating, plainly
from poolrt.runtime.state.layers import Layer
from poolrt.runtime.state.paths import contains
from poolrt.runtime.state.slot import Slot


class StagedPlacement(Placement):
    """The layers of `model` on their stages; a region's pieces on all cards of one, everything else on its lead."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        card_of: Mapping[str, int],
        devices: Sequence[torch.device],
        stages: Sequence[SplitStage],
        caps: Caps | None = None,
    ) -> None:
        super().__init__(model, layers, card_of, devices, caps)
        self.stages = tuple(stages)
        self.together = {stage.cards[0]: stage.cards for stage in stages}
        self._installed: list[tuple[SplitStage, Installed]] = []
        self._owners: dict[int, tuple[ShardedParameter, int]] = {}
        self._held: list[list[Tensor]] = []
        regions = [region for stage in stages for region in stage.regions.regions]
        self._names = tuple(rewrite.module for region in regions for rewrite in region.rewrites)
        self._rewritten = {inner for name in self._names for inner in model.get_submodule(name).modules()}

    @property
    def hooked_layers(self) -> list[Layer]:
        """Layers whose calls are seen: not those inside a region, which are called on every card at once."""
        return [
            layer
            for layer in self.layers
            if not any(contains(name, layer.name) and name != layer.name for name in self._names)
        ]

    # ---- pieces

    def split(self, spill: Spill | None = None) -> None:
        """Deal the parameters out; `apply` then brings the rest to the lead cards.

        Args:
            spill: gives the pieces of the layers that a card spills.

        Raises:
            torch.OutOfMemoryError: if a card has no room; call `undo` then.
            ModelError: if a parameter is held in a way that cannot be kept: a graph, a weak reference.
        """
        layer_of = self._layer_of_parameters()
        for stage in self.stages:
            allocating = partial(_allocating, spill, stage.cards, layer_of) if spill is not None else _plainly
            names = sorted(stage.splits, key=lambda name: _rank(spill, layer_of[name], stage.cards[0]))
            splits = {name: stage.splits[name] for name in names}
            shard_parameters(self.model, splits, self.devices_of(stage), allocating)

    def _layer_of_parameters(self) -> dict[str, str]:
        """By name, the first layer that has the parameter in it; "" if none has."""
        names = {
            id(parameter): layer.name for layer in reversed(self.layers) for parameter in layer.module.parameters()
        }
        return {name: names.get(id(parameter), "") for name, parameter in self.model.named_parameters()}

    def undo(self) -> None:
        """Every parameter whole, and where it was before it was split."""
        self.uninstall()
        unshard_parameters(self.model)

    def devices_of(self, stage: SplitStage) -> list[torch.device]:
        """The devices of a stage's cards."""
        return [self.devices[card] for card in stage.cards]

    # ---- rewrites

    def install(self) -> None:
        """Put the rewrites on the modules, which are bare."""
        if self._installed:
            return
        # Pieces are the same objects only while someone holds all of a parameter's: then one node has their gradients.
        sharded = [parameter for parameter in self.model.parameters() if isinstance(parameter, ShardedParameter)]
        self._held = [pieces(parameter) for parameter in sharded]
        for parameter, held in zip(sharded, self._held, strict=True):
            self._owners.update({id(piece): (parameter, position) for position, piece in enumerate(held)})
        try:
            for stage in self.stages:
                installed = Installed(self.model, stage.regions, self.devices_of(stage), _pieces, self.traffic)
                self._installed.append((stage, installed))
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Take them off."""
        for _, installed in reversed(self._installed):
            installed.uninstall()
        self._installed.clear()
        self._owners.clear()
        self._held.clear()

    # ---- for stand-ins

    def slots(self) -> list[Slot]:
        """Where the cards read parameters and pieces; the whole of what a region reads in pieces is read nowhere."""
        whole = [slot for slot in super().slots() if not self._is_read_in_pieces(slot)]
        return whole + [
            Slot(slot.module, slot.name, stage.cards[slot.card])
            for stage, installed in self._installed
            for slot in installed.slots()
        ]

    def _is_read_in_pieces(self, slot: Slot) -> bool:
        return slot.module in self._rewritten and isinstance(slot.parameter, ShardedParameter)

    def owner_of(self, tensor: nn.Parameter) -> tuple[nn.Parameter, int | None]:
        """The user's parameter of which this is a piece, and the piece's position; itself and None for a whole one."""
        return self._owners.get(id(tensor), (tensor, None))


def _rank(spill: Spill | None, layer: str, card: int) -> int:
    """What is to lie nearest comes first; what is not spilled, before that."""
    rank = None if spill is None else spill.rank(layer, card)
    return -1 if rank is None else rank


def _plainly(name: str) -> Allocating:
    return plainly


def _allocating(spill: Spill, cards: Sequence[int], layer_of: Mapping[str, str], name: str) -> Allocating:
    return lambda ordinal: spill.allocating(layer_of[name], cards[ordinal])


def _pieces(parameter: Tensor) -> list[Tensor]:
    assert isinstance(parameter, nn.Parameter)
    return pieces(parameter)
