"""Every error that poolrt raises on purpose. Each says what happened, with which values, and what to do next."""

from __future__ import annotations


class PoolrtError(Exception):
    """Base of all errors raised by poolrt itself."""


class ConfigurationError(PoolrtError, ValueError):
    """An argument or an environment variable that cannot be used as given."""


class ModelError(PoolrtError, ValueError):
    """A model that cannot be sharded as it is: no parameters, weights on meta, already sharded."""


class SampleError(PoolrtError, TypeError):
    """A sample batch that the model's forward would not accept."""


class PlanError(PoolrtError, ValueError):
    """A plan that does not belong to this model or this topology."""


class InfeasibleError(PoolrtError, RuntimeError):
    """No plan fits the cards; the message says what is missing and what would make it fit."""


class DriverError(PoolrtError, RuntimeError):
    """A driver call that failed, or a driver that is not there."""

    code: int = 0
    """the driver's status, numbered as CUresult"""
    name: str = ""
    """the status in words"""


class PoolError(PoolrtError, RuntimeError):
    """A pool that cannot do what was asked: it is closed, in use, or the tensor is not its own."""


class BuildError(PoolrtError, RuntimeError):
    """The virtual-card backend could not be compiled; the message holds the compiler's words."""


class TransferError(PoolrtError, RuntimeError):
    """A copy between cards that cannot be made right; the message says what to do."""
