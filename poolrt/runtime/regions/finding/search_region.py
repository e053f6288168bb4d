"""From a module and one call of it to a rewrite, or to the sentence that says why it stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from poolrt.errors import ConfigurationError
from poolrt.runtime.regions.finding.attributes import Attribute
from poolrt.runtime.regions.finding.dealing import Dealing, NotSplittableError, check_promising, deal, what_spans
from poolrt.runtime.regions.finding.fitting import Fitting
from poolrt.runtime.regions.finding.granules import allot, levels
from poolrt.runtime.regions.finding.needs import Needs, RowWeight, row_weights
from poolrt.runtime.regions.finding.probe import Call, Chain, RegionProbe, evaluated
from poolrt.runtime.regions.finding.stand_in import FEW, with_fewer
from poolrt.runtime.regions.plan import Forked, RowLinear
from poolrt.runtime.state.trees import flatten

_GOOD = 0.15
"""above an even share of the weights: a row weight that leaves cards with less is taken without a look at others"""


_Dealt = tuple[Needs, Dealing, tuple[int, ...]]
"""the needs of a row weight, the pieces of the region that follow, and the granules of its cuts"""
Read = tuple[Attribute, ...]
"""the whole numbers that the code of a region reads"""


def fork_of(module: nn.Module, call: Call, shares: Sequence[float], hints: Sequence[str] = ()) -> tuple[Forked, Read]:
    """How `module` is run by all cards together; `module` of the rewrite is "" and its names are the module's.

    Args:
        module: of any class.
        call: the arguments of one call; a small one is enough.
        shares: what each card should get of it, relative to the others.
        hints: names of weights that are tried as row weights first.

    Raises:
        NotSplittableError: if it stays whole; the message says why.
    """
    with evaluated(module):
        probe = _working_probe(module, call)
        return _fit_best(probe, shares, hints)


def chain_of(column: nn.Module, row: nn.Module, call: Call, shares: Sequence[float]) -> tuple[Forked, RowLinear, Read]:
    """How a module and the linear layer that reads its first output are run by all cards together.

    Raises:
        NotSplittableError: if they stay whole; the message says why.
    """
    chain = Chain(column, with_fewer(row, FEW))
    with evaluated(chain):
        probe = _working_probe(chain, call)
        try:
            forked, read = _fit_best(probe, shares, ("row.weight",), only=("row.weight",))
        except NotSplittableError as problem:
            raise NotSplittableError(str(problem).replace("column.", "")) from None
    name = "column."
    if any(not inner.startswith("row.") for inner in forked.lead):
        raise NotSplittableError(f"{', '.join(forked.lead)} are used past the linear layer")
    forked_column = replace(
        forked,
        splits={inner.removeprefix(name): split for inner, split in forked.splits.items() if inner.startswith(name)},
        lead=(),
        attributes=tuple(replace(change, path=_inside(change.path)) for change in forked.attributes),
        outputs=("parts", *forked.outputs[1:]),
    )
    inside = tuple(replace(attribute, path=_inside(attribute.path)) for attribute in read)
    return forked_column, RowLinear(module="", split=forked.splits["row.weight"]), inside


def _working_probe(module: nn.Module, call: Call) -> RegionProbe:
    """A probe in fp64; in fp32 for code that insists on it."""
    _check_module(module)
    if not any(tensor.is_floating_point() for tensor in flatten(call).tensors):
        raise NotSplittableError("it reads no numbers")
    problem = ""
    for dtype in (torch.float64, torch.float32):
        probe = RegionProbe(module, call, dtype)
        try:
            with torch.no_grad():
                output = probe.run()
        except Exception as error:  # whatever a user's module raises
            problem = f"it could not be run by itself: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        if output.leaves and output.tensors[0].is_floating_point():
            return probe
        problem = "its output is no tensor of numbers"
    raise NotSplittableError(problem)


def _check_module(module: nn.Module) -> None:
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(module.parameters())):
        raise NotSplittableError("two of its weights are one parameter")
    for path, inner in module.named_modules():
        if "forward" in inner.__dict__:
            raise NotSplittableError(f"the forward of {path or 'the module'} was replaced by other code")
        if path and (inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks):
            raise NotSplittableError(f"a hook on {path} would see parts")
        if getattr(inner, "track_running_stats", False):
            raise NotSplittableError(f"{path or 'it'} keeps statistics of what passes through")


def _fit_best(
    probe: RegionProbe, shares: Sequence[float], hints: Sequence[str], only: Sequence[str] | None = None
) -> tuple[Forked, Read]:
    """The fit of a row weight that leaves the cards with little enough, at once; else of the one that leaves least."""
    problems: list[str] = []
    unfit: list[str] = []
    left: list[_Dealt] = []
    for row in row_weights(probe, hints):
        if only is not None and row.name not in only:
            break  # they come first
        try:
            found = _dealt(probe, row, shares)
        except (NotSplittableError, ConfigurationError) as problem:
            problems.append(str(problem))
            continue
        if found[1].share > 1 / len(shares) + _GOOD:
            left.append(found)
        elif (fit := _fit(found, unfit)) is not None:
            return fit
    for found in sorted(left, key=lambda found: found[1].share):
        if (fit := _fit(found, unfit)) is not None:
            return fit
    problems = [*unfit, *problems]
    raise NotSplittableError(problems[0] if problems else "no weight of it is one whose parts' outputs add up")


def _fit(found: _Dealt, unfit: list[str]) -> tuple[Forked, Read] | None:
    """The fit; None if there is none: why is added to `unfit`."""
    needs, dealing, granules = found
    try:
        return Fitting(needs, dealing, granules).fit()
    except NotSplittableError as problem:
        unfit.append(what_spans(needs, dealing.splits) or str(problem))
        return None


def _dealt(probe: RegionProbe, row: RowWeight, shares: Sequence[float]) -> _Dealt:
    needs = Needs(probe, row)
    check_promising(needs)
    granules = levels(needs)
    return needs, deal(needs, allot(needs.size, granules, shares)), granules


def _inside(path: str) -> str:
    """The path inside the first module of a chain: a of column.a."""
    return path.removeprefix("column").removeprefix(".")
