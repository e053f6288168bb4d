"""A card's own copy of a region: the same Python, another card's pieces.

Only the module objects are copied. What they hold is shared with the original until it is replaced here: parameters by
pieces, buffers by copies on the card, a config by one whose numbers may be changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from poolrt.runtime.state.slot import Slot

_HOOKS = frozenset(name for name in nn.Module().__dict__ if "hooks" in name)
_OWN = ("_parameters", "_buffers", "_modules")


def replicate(module: nn.Module) -> nn.Module:
    """A shallow copy of a tree of modules; hooks of the root stay with the original, where they are called once."""
    replica = _copied(module, {}, {})
    replica.__dict__.update({name: type(value)() for name, value in replica.__dict__.items() if name in _HOOKS})
    return replica


def _copied(module: nn.Module, modules: dict[int, nn.Module], configs: dict[int, Any]) -> nn.Module:
    if id(module) in modules:
        return modules[id(module)]
    replica = modules[id(module)] = module.__class__.__new__(module.__class__)
    replica.__dict__.update(module.__dict__)
    replica.__dict__.update({name: dict(module.__dict__[name]) for name in _OWN})
    replica.__dict__.pop("_compiled_call_impl", None)  # it calls the original
    config = module.__dict__.get("config")
    if hasattr(config, "__dict__"):
        replica.__dict__["config"] = configs.setdefault(id(config), copy.copy(config))
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else _copied(child, modules, configs)
    return replica


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """What the module has as its parameter of this name; in a replica that is any tensor."""
    holder, leaf = _owner(module, name)
    found = holder._parameters[leaf]
    assert found is not None
    return found


def put_parameters(replica: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Have the replica read these tensors as its parameters, by name; and know the sizes of its linear layers."""
    for name, tensor in parameters.items():
        module, leaf = _owner(replica, name)
        module._parameters[leaf] = tensor  # type: ignore[assignment]  # a piece may be a plain tensor
        if isinstance(module, nn.Linear) and leaf == "weight":
            module.out_features, module.in_features = tensor.shape
        elif leaf == "weight" and type(module).__name__ == "Conv1D":  # GPT-2's linear layer, its weight transposed
            module.__dict__["nf"] = tensor.shape[1]


def holder_of(pieces: Mapping[str, Tensor]) -> nn.Module:
    """A module that does nothing but hold these tensors as its parameters."""
    holder = nn.Module()
    holder._parameters.update(pieces)  # type: ignore[arg-type]  # a piece may be a plain tensor
    return holder


def slot_of(module: nn.Module, name: str, card: int) -> Slot:
    """The place of a parameter inside a module that runs on `card`."""
    holder, leaf = _owner(module, name)
    return Slot(holder, leaf, card)


def put_buffers(replica: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Have the replica read these tensors as its buffers, by name."""
    for name, tensor in buffers.items():
        module, leaf = _owner(replica, name)
        module._buffers[leaf] = tensor


def put_attribute(replica: nn.Module, path: str, in_config: bool, name: str, value: int) -> None:
    """Change a number of the module at `path`, or of its config."""
    module = replica.get_submodule(path)
    if in_config:
        setattr(module.config, name, value)
    else:
        module.__dict__[name] = value


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf
