"""A model as it stands on its cards: weights, hooks and rewrites. Put up, taken down, and put up anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from poolrt.runtime.disguise import MARK
from poolrt.runtime.lanes.hooks import hook_layers
from poolrt.runtime.measuring.measure import to_layer
from poolrt.runtime.placing import optimizer_state
from poolrt.runtime.placing.caps import Caps
from poolrt.runtime.placing.place import Placement, WeightsBefore
from poolrt.runtime.placing.spill import Spill
from poolrt.runtime.placing.staged_place import StagedPlacement
from poolrt.runtime.placing.stages import SplitStage
from poolrt.runtime.state.layers import Layer


class OnCards:
    """Where a model is.

    Args:
        model: with its own forward.
        layers: of the model.
        devices: of the cards.
        caps: of logical cards.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], devices: Sequence[torch.device], caps: Caps | None
    ) -> None:
        self.forward: Callable[..., Any] = model.forward
        """the model's own, or what a rewrite of the whole model has put in its place"""
        self.caps = caps
        self.placement = Placement(model, layers, dict.fromkeys((layer.name for layer in layers), 0), devices, caps)
        """on no card yet"""
        self.spill: Spill | None = None
        self._own_forward = model.__dict__.get("forward")
        self._handles: list[RemovableHandle] = []
        self._stands = False
        self._weights_before = WeightsBefore(model)

    def put_up(
        self,
        layers: Sequence[Layer],
        card_of: Mapping[str, int],
        stages: Sequence[SplitStage] = (),
        spill: Spill | None = None,
        *,
        or_not: bool = False,
        in_pieces: bool = False,
    ) -> None:
        """Layers to cards.

        Args:
            layers: of the model, in the order of their calls.
            card_of: layer name to card.
            stages: of several cards, and what they split.
            spill: takes the weights of the layers that the plan spills.
            or_not: weights that do not fit stay behind: a plan will say what is missing.
            in_pieces: parameters lie in their pieces already.

        Raises:
            torch.OutOfMemoryError: if weights do not fit. Some are on the cards then: `go_back` when all is told.
        """
        self.take_down()
        model, devices, self.spill = self.placement.model, self.placement.devices, spill
        if stages:
            staged = self.placement = StagedPlacement(model, layers, card_of, devices, stages)
            if in_pieces and spill is not None:
                staged.undo()  # a copy of what is in a pool is not
            if not in_pieces or spill is not None:
                staged.split(spill)
        else:
            self.placement = Placement(model, layers, card_of, devices, self.caps)
        try:
            self.placement.apply(spill)
        except torch.OutOfMemoryError:
            if not or_not:
                raise
            self._weights_before.restore()
        self.add_hooks()

    def take_down(self) -> None:
        """No hooks, no rewrites, no pieces; whole parameters are where the cards' were, or where they came from."""
        self.remove_hooks()
        optimizer_state.forget(self.placement)
        self.placement.undo()

    def go_back(self) -> None:
        """The model as it was, where it came from."""
        self.take_down()
        self.bring_weights_back()

    def bring_weights_back(self) -> None:
        """Whole parameters, and the very buffers, where they came from."""
        self._weights_before.restore()

    def follow_optimizers(self, guard: optimizer_state.Guard) -> None:
        """Optimizers find their parameters' state where these are; `guard` explains steps that do not fit."""
        optimizer_state.follow(self.placement, self.spill, guard)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The forward that the model has now."""
        return self.forward(*args, **kwargs)

    # ---- hooks and rewrites

    def add_hooks(self) -> None:
        """Put the hooks on the layers, and the rewrites on the modules."""
        with self.bare():
            self.placement.install()
            if self.placement.together:
                self.forward = self.placement.model.forward
        model = self.placement.model
        layers = [layer for layer in self.placement.hooked_layers if layer.module is not model]  # that has our forward
        self._handles = hook_layers(layers, to_layer)
        self._stands = True

    def remove_hooks(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stands = False
        if self.placement.together:
            with self.bare():
                self.placement.uninstall()
                self.forward = self.placement.model.forward

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Without hooks and rewrites for a while, if there are any: a probe brings its own."""
        stood = self._stands
        self.remove_hooks()
        try:
            yield
        finally:
            if stood:
                self.add_hooks()

    @contextmanager
    def as_it_came(self) -> Iterator[None]:
        """The model taken down, bare, and where it came from; it stays there."""
        self.go_back()
        with self.bare():
            yield

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model with its own forward, or the one that a rewrite of the whole model gives it."""
        attributes = self.placement.model.__dict__
        disguised = attributes.get("forward")
        if not hasattr(disguised, MARK):
            yield
            return
        del attributes["forward"]
        if self._own_forward is not None:
            attributes["forward"] = self._own_forward
        try:
            yield
        finally:
            attributes["forward"] = disguised
