"""Where a parameter stands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Slot:
    """A place in a module where a parameter stands, and the card on which that module runs."""

    module: nn.Module
    name: str
    card: int

    @property
    def parameter(self) -> nn.Parameter:
        """What stands there now."""
        parameter = self.module._parameters[self.name]
        assert parameter is not None
        return parameter
