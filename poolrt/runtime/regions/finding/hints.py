"""What transformers says about how a model may be split: taken as a hint where to look first, never as the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

_ROW = "rowwise"


def row_hints(model: nn.Module, module: str, names: Mapping[str, object]) -> tuple[str, ...]:
    """Weights of `module` that the model's own `tp_plan` calls row-split, named from the module.

    Args:
        model: any; without a plan there are no hints.
        module: the model's name of the module.
        names: the names of its weights, from the module.
    """
    plan = getattr(model, "tp_plan", None)
    if not isinstance(plan, Mapping):
        return ()
    row = {str(pattern) for pattern, style in plan.items() if str(style).startswith(_ROW)}
    return tuple(name for name in names if _patterns(f"{module}.{name}") & row)


def _patterns(name: str) -> set[str]:
    """What may stand for a.0.b.weight in a plan: a.*.b.weight, a.*.b."""
    general = re.sub(r"\.\d+(?=\.|$)", ".*", name)
    return {general, general.removesuffix(".weight")}
