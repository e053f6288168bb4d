"""From the probe's measurements to the planner's Profile: weights by layer, tied parameters, fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from poolrt.planning.profile import LayerFacts, Profile, TiedParameter
from poolrt.runtime.measuring.probe import Probed
from poolrt.runtime.state.layers import Layer, unique_tensors
from poolrt.runtime.state.memory_watch import granular


def fingerprint(model: nn.Module) -> str:
    """A short hash of the model's class and the names, shapes and dtypes of its parameters."""
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
    return digest.hexdigest()[:16]


def weigh_layers(model: nn.Module, layers: Sequence[Layer]) -> tuple[tuple[LayerFacts, ...], tuple[TiedParameter, ...]]:
    """Bytes of each layer, a tied parameter counted with its first layer only; what is in no layer, with the first."""
    owner: dict[int, str] = {}
    users: dict[int, list[str]] = {}
    for layer in layers:
        for tensor in unique_tensors(_tensors(layer.module)):
            owner.setdefault(id(tensor), layer.name)
            users.setdefault(id(tensor), []).append(layer.name)
    loose = [tensor for tensor in unique_tensors(_tensors(model)) if id(tensor) not in owner]
    facts = [
        _whole(layer.name, [t for t in unique_tensors(_tensors(layer.module)) if owner[id(t)] == layer.name])
        for layer in layers
    ]
    if facts and loose:
        facts[0] = _whole(facts[0].name, [*(t for t in unique_tensors(_tensors(layers[0].module))), *loose])
    tied = tuple(
        TiedParameter(name=name, nbytes=granular(parameter.nbytes), layers=tuple(users[id(parameter)]))
        for name, parameter in model.named_parameters()
        if len(users.get(id(parameter), ())) > 1
    )
    return tuple(facts), tied


def layer_facts(name: str, held: Iterable[tuple[Tensor, int]]) -> LayerFacts:
    """What a layer weighs that holds so many bytes of each of these parameters and buffers."""
    held = list(held)
    trained = tuple(nbytes for tensor, nbytes in held if tensor.requires_grad)
    frozen = tuple(nbytes for tensor, nbytes in held if not tensor.requires_grad)
    return LayerFacts(
        name=name,
        weight_nbytes=sum(trained) + sum(frozen),
        trainable_nbytes=sum(trained),
        largest_gradient_nbytes=max(trained, default=0),
        trained_tensors=trained,
        frozen_tensors=frozen,
    )


def _whole(name: str, tensors: Sequence[Tensor]) -> LayerFacts:
    return layer_facts(name, ((tensor, granular(tensor.nbytes)) for tensor in tensors))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def make_profile(
    model: nn.Module, layers: Sequence[Layer], probed: Probed, *, batch_size: int, input_nbytes: int, gathered: bool
) -> Profile:
    """The planner's view of `model`, its layers in the order of their first call (those never called keep their place).

    Args:
        model: the model.
        layers: its layers.
        probed: what the probe measured.
        batch_size: samples in the probed batch.
        input_nbytes: bytes of the batch's own tensors.
        gathered: whether whole outputs are put together on a card (else on the host).
    """
    facts, tied = weigh_layers(model, layers)
    return Profile(
        model=fingerprint(model),
        batch_size=batch_size,
        layers=facts,
        calls=tuple(probed.calls),
        tied=tied,
        input_nbytes=input_nbytes,
        gathered_nbytes=probed.output_nbytes if gathered else 0,
        output_nbytes=probed.output_nbytes,
        returns_loss=probed.returns_loss,
    )


def in_call_order(layers: Sequence[Layer], probed: Probed) -> list[Layer]:
    """`layers` ordered by first call; one never called stays behind the layer it followed before."""
    first: dict[str, float] = {}
    for index, call in enumerate(probed.calls):
        first.setdefault(call.layer, float(index))
    keys: dict[str, float] = {}
    last = -1.0
    for layer in layers:
        last = keys[layer.name] = first.get(layer.name, last)
    return sorted(layers, key=lambda layer: keys[layer.name])
