"""One run of the model: what every module is called with, and which linear layer reads another module's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from poolrt.runtime.regions.finding.probe import Call, watchable
from poolrt.runtime.regions.finding.stand_in import is_linear
from poolrt.runtime.regions.running.parted import Parted, part_together

Run = Callable[[], Any]
"""calls the model once on a small batch, without a cache"""


@dataclass
class Captured:
    """What was seen."""

    calls: dict[str, Call] = field(default_factory=dict)
    """the first call of each module, by name and in the order of the calls"""
    readers: dict[str, list[str]] = field(default_factory=dict)
    """linear layer -> modules whose first output it is given as it is, innermost first"""


def capture(model: nn.Module, run: Run) -> Captured:
    """Watch one run, in evaluation mode and without gradients.

    The tensors of the arguments are kept until what is returned here is let go.
    """
    captured = Captured()
    made_by: dict[int, list[str]] = {}
    kept: list[Tensor] = []  # a tensor that is gone could lend its id to another one

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.calls.setdefault(name, (args, kwargs))
        if args and is_linear(module) and name not in captured.readers and id(args[0]) in made_by:
            captured.readers[name] = list(made_by[id(args[0])])

    def after(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            made_by.setdefault(id(first), []).append(name)
            kept.append(first)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(_hooked(module, name, before, after))
        with watchable(), torch.no_grad():
            run()
    return captured


@contextmanager
def _hooked(module: nn.Module, name: str, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    handles = (
        module.register_forward_pre_hook(
            lambda inner, args, kwargs: before(name, inner, args, kwargs), with_kwargs=True
        ),
        module.register_forward_hook(lambda inner, args, output: after(name, output)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def follow(model: nn.Module, run: Run, linears: Sequence[str], pieces: int) -> dict[str, tuple[str, ...]]:
    """Which linear layer reads what others made, changed element by element on the way or not at all.

    The outputs of the layers named `linears` are made of parts for one run. Parts survive work on single elements
    (activations, dropout, products of two such) and nothing else.

    Returns:
        reader -> makers: one, or the two of a gated unit.
    """
    found: dict[str, tuple[str, ...]] = {}
    with ExitStack() as stack:
        for name in linears:
            stack.enter_context(_parting(model.get_submodule(name), name, pieces, found))
        with watchable(), torch.no_grad():
            run()
    return found


@contextmanager
def _parting(module: nn.Module, name: str, pieces: int, found: dict[str, tuple[str, ...]]) -> Iterator[None]:
    own = module.forward

    def forward(input: Tensor) -> Tensor:  # noqa: A002 (torch's own name for it)
        if isinstance(input, Parted) and input.parts is not None:
            found.setdefault(name, input.sources)
        whole = input.whole() if isinstance(input, Parted) else input
        output: Tensor = own(whole)
        if output.shape[-1] < pieces:
            return output
        return part_together(output.tensor_split(pieces, -1), output.device, (name,))

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
