"""Errors are part of the interface: code written for Python's own kinds of error catches them as well."""

import pytest

import poolrt
from poolrt import errors

KINDS = {
    errors.ConfigurationError: ValueError,
    errors.ModelError: ValueError,
    errors.SampleError: TypeError,
    errors.PlanError: ValueError,
    errors.InfeasibleError: RuntimeError,
    errors.DriverError: RuntimeError,
    errors.PoolError: RuntimeError,
    errors.BuildError: RuntimeError,
    errors.TransferError: RuntimeError,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_poolrts_and_of_a_kind_python_knows(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.PoolrtError)
    assert issubclass(kind, KINDS[kind])


def test_no_error_is_missing_above() -> None:
    defined = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert defined - {errors.PoolrtError} == set(KINDS)


def test_the_front_door_names_the_base() -> None:
    assert poolrt.PoolrtError is errors.PoolrtError
