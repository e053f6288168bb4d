"""load_state_dict(assign=True) of a module with sharded parameters: their values are taken, and they stay sharded.

Otherwise torch would put the loaded tensor into the module as a new parameter, whole, which regions and optimizers know
nothing of. Loading without assign copies into the parameters and needs no help.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poolrt.runtime.sharded.parameter import ShardedParameter


def keep_sharded(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """A hook before one module loads: what it is to assign to a sharded parameter is put there, dtype and all."""
    if not local_metadata.get("assign_to_params_buffers", False):
        return
    for name, parameter in module._parameters.items():
        value = state_dict.get(prefix + name)
        if not isinstance(parameter, ShardedParameter) or not isinstance(value, Tensor) or value is parameter:
            continue
        if value.shape == parameter.shape and not value.is_meta:  # others are torch's to refuse
            with torch.no_grad():
                parameter.assign(value)
            state_dict[prefix + name] = parameter
