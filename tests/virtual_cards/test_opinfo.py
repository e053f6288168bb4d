"""torch's own operator samples, on a card against the CPU: every result and every gradient, to the bit.

The samples are those of torch.testing's op_db for float32. `opinfo_exceptions.py` names what does not agree, and why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from virtual_cards.opinfo_exceptions import EXCEPTIONS, ROUNDED, VALUELESS

CARD = "vcard:1"
SAMPLES_PER_OPERATOR = 24
CHUNKS = 8

pytestmark = pytest.mark.filterwarnings("ignore")


def operators() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return [operator for operator in op_db if torch.float32 in operator.supported_dtypes("cpu")]


def name_of(operator: Any) -> str:
    return operator.name + (f".{operator.variant_test_name}" if operator.variant_test_name else "")


def samples_of(operator: Any) -> Iterator[tuple[Any, ...]]:
    # sample_inputs() itself looks through the call stack each time, which costs more than the comparison.
    reseed()
    samples = operator.sample_inputs_func(operator, "cpu", torch.float32, operator.supports_autograd)
    for sample in itertools.islice(samples, SAMPLES_PER_OPERATOR):
        yield (sample.input, sample.args, sample.kwargs)


def reseed() -> None:
    """torch.manual_seed for the two devices in use, at a fraction of its cost."""
    for generator in (torch.default_generator, *torch.vcard.default_generators):
        generator.manual_seed(0)


def placed(arguments: Any, device: str) -> Any:
    """`arguments` with every tensor, and every mention of the CPU, on `device`."""

    def place(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(device, copy=True).requires_grad_(value.requires_grad)
        return torch.device(device) if value == "cpu" or value == torch.device("cpu") else value

    return tree_map(place, arguments)


def results_of(operator: Any, sample: Any, device: str) -> list[torch.Tensor]:
    """Every tensor that comes out, then the gradient of every input that takes one."""
    first, args, kwargs = arguments = placed(sample, device)
    reseed()
    out = tensors_in(operator(first, *args, **kwargs))
    inputs = [tensor for tensor in tensors_in(arguments) if tensor.requires_grad]
    differentiable = [tensor for tensor in out if tensor.requires_grad]
    if not (operator.supports_autograd and inputs and differentiable):
        return out
    loss = sum((tensor.abs() if tensor.is_complex() else tensor).sum().float() for tensor in differentiable)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [*out, *(gradient for gradient in gradients if gradient is not None)]


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def difference(operator: Any, sample: Any) -> str | None:
    """What differs between a card and the CPU on one sample, or None."""
    try:
        expected = results_of(operator, sample, "cpu")
        found = results_of(operator, sample, CARD)
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if len(expected) != len(found):
        return f"{len(found)} tensors instead of {len(expected)}"
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name_of(operator) in ROUNDED else {"rtol": 0, "atol": 0}
    for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        if tensors_in(sample) and got.device != torch.device(CARD):
            return f"result {number} is on {got.device}"
        if got.stride() != wanted.stride():
            return f"result {number} has strides {got.stride()} instead of {wanted.stride()}"
        if name_of(operator) in VALUELESS:
            got, wanted = torch.zeros_like(got), torch.zeros_like(wanted)
        got, wanted = values(got.cpu()), values(wanted)
        if got.dtype == wanted.dtype and torch.equal(got, wanted):
            continue
        try:
            torch.testing.assert_close(got, wanted, equal_nan=True, **tolerance)
        except AssertionError as error:
            return f"result {number}: {error}"
    return None


def values(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a type that torch compares: half-precision complex numbers have no comparison on the CPU."""
    tensor = tensor.detach().resolve_conj()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_cards_compute_what_the_cpu_computes(chunk):
    differing = {}
    for operator in operators()[chunk::CHUNKS]:
        if name_of(operator) in EXCEPTIONS:
            continue
        said = [text for sample in samples_of(operator) if (text := difference(operator, sample))]
        if said:
            differing[name_of(operator)] = said[0]
    assert not differing


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_exceptions_still(name):
    operator = next(operator for operator in operators() if name_of(operator) == name)
    assert any(difference(operator, sample) for sample in samples_of(operator))


def test_most_of_torch_is_compared():
    names = {name_of(operator) for operator in operators()}
    assert set(EXCEPTIONS) | set(ROUNDED) | set(VALUELESS) <= names
    assert len(names - set(EXCEPTIONS)) > 600
