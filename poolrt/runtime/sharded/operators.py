"""How each of torch's operators works on sharded tensors: by name, else the first of these ways that fits.

    a list of tensors        card by card                       lists
    a view                   a view that writes through         view
    element by element       card by card, bit-equal            elementwise
    a number of all          a number per card, joined          reductions
    anything else            gathered; written back             gathered

Results of the whole lie on the first card.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from poolrt.errors import ModelError
from poolrt.runtime.sharded.elementwise import common_sharding, run_on_pieces
from poolrt.runtime.sharded.facts import changes_shape, is_over_lists, name_of, written_arguments
from poolrt.runtime.sharded.gathered import run_on_whole
from poolrt.runtime.sharded.lists import run_over_lists
from poolrt.runtime.sharded.partial import PartialGradient
from poolrt.runtime.sharded.reductions import run_reduction
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor, alias
from poolrt.runtime.sharded.view import ShardedView

aten = torch.ops.aten


def run_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operator, some of whose arguments are sharded.

    Raises:
        ModelError: if it would give a sharded tensor another shape or storage in place.
    """
    if any(isinstance(value, PartialGradient) for value in args):
        return _add_up(func, args, kwargs)
    by_name = _BY_NAME.get(func)
    if by_name is not None:
        return by_name(*args, **kwargs)
    if is_over_lists(func):
        return run_over_lists(func, args, kwargs)
    if changes_shape(func) and isinstance(args[0], Sharded):
        where = ", ".join(map(str, args[0].sharding.devices))
        raise ModelError(
            f"{name_of(func)} would change the shape or storage of a tensor that is split over {where}; undo the split "
            "first (unshard_parameters), or work on a copy on one card (.clone() of .cpu())"
        )
    if func.is_view and isinstance(args[0], Sharded):
        return _view(func, args, kwargs)
    if name_of(func).startswith("new_"):
        return func(*tree_map(_empty_of_its_kind, args), **kwargs)
    if kwargs.get("device") is not None and name_of(func).endswith("_like"):
        return func(_form_on_lead(args[0]), *args[1:], **kwargs)
    sharding = common_sharding(func, args, kwargs)
    if sharding is not None:
        return run_on_pieces(func, args, _without_device(kwargs), sharding)
    reduced = run_reduction(func, args, kwargs)
    return run_on_whole(func, args, kwargs) if reduced is None else reduced


def _add_up(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Autograd adds gradients that are not complete yet; for all else they are completed first."""
    first, *rest = args
    if func is aten.add.Tensor and not kwargs and all(isinstance(value, PartialGradient) for value in args):
        return first.plus(*rest)
    completed = {id(value): value.completed() for value in args if isinstance(value, PartialGradient)}
    result = func(*(completed.get(id(value), value) for value in args), **kwargs)
    for value in written_arguments(func, args, kwargs):
        if isinstance(value, PartialGradient):
            value.become(completed[id(value)])
    return first if result is completed.get(id(first)) else result


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "device"}


def _empty_of_its_kind(value: Any) -> Any:
    """For operators that ask a tensor only for its type and device."""
    return torch.empty(0, dtype=value.dtype, device=value.device) if isinstance(value, Sharded) else value


def _form_on_lead(tensor: Tensor) -> Tensor:
    """Of the shape and kind of `tensor`, in the memory of one element."""
    return torch.empty((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


# ---- views


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    base, rest = args[0], args[1:]
    if not isinstance(func._schema.returns[0].type, torch.ListType):
        return ShardedView.of(base, lambda whole: func(whole, *rest, **kwargs))

    def element(index: int, whole: Tensor) -> Tensor:
        chosen: Tensor = func(whole, *rest, **kwargs)[index]
        return chosen

    form = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
    count = len(func(form, *rest, **kwargs))
    return [ShardedView.of(base, partial(element, index)) for index in range(count)]


def _detach(tensor: Tensor) -> Tensor:
    if isinstance(tensor, ShardedTensor):
        return alias(tensor)
    assert isinstance(tensor, ShardedView)
    return ShardedView.of(tensor, lambda whole: whole.detach())


# ---- copies


def _to_copy(tensor: Sharded, *, device: torch.device | None = None, **kwargs: Any) -> Tensor:
    """A copy of another type stays split; one for another device is gathered there."""
    dtype = kwargs.get("dtype") or tensor.dtype
    stays = device is None or torch.device(device) == tensor.device
    if stays and isinstance(tensor, ShardedTensor):
        pieces = [aten._to_copy.default(piece, **kwargs) for piece in tensor.pieces]
        return ShardedTensor(pieces, tensor.sharding)
    whole = tensor.whole(device)
    return whole if dtype == tensor.dtype else whole.to(dtype, memory_format=kwargs.get("memory_format"))


def _copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Between sharded tensors piece by piece; from a plain one run by run, so that no card sees the whole."""
    if _lie_alike(target, source):
        assert isinstance(target, ShardedTensor)
        assert isinstance(source, ShardedTensor)
        for piece, values in zip(target.pieces, source.pieces, strict=True):
            piece.copy_(values)
        target.mark_changed()
    elif isinstance(target, Sharded):
        plain = source.whole("cpu") if isinstance(source, Sharded) else source
        target.write(plain.expand(target.shape))
    else:
        target.copy_(source.whole(target.device) if isinstance(source, Sharded) else source)
    return target


def _lie_alike(first: Tensor, second: Tensor) -> bool:
    together = isinstance(first, ShardedTensor) and isinstance(second, ShardedTensor)
    return together and cast(ShardedTensor, first).sharding == cast(ShardedTensor, second).sharding


def _equal(first: Tensor, second: Tensor) -> bool:
    if _lie_alike(first, second):
        return all(map(torch.equal, cast(ShardedTensor, first).pieces, cast(ShardedTensor, second).pieces))
    return bool(run_on_whole(aten.equal.default, (first, second), {}))


def _record_stream(tensor: ShardedTensor, stream: Any) -> None:
    for piece in tensor.pieces:
        if piece.device == stream.device:
            piece.record_stream(stream)


_BY_NAME: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _detach,
    aten.alias.default: _detach,
    aten.detach_.default: lambda tensor: tensor,
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy_,
    aten.equal.default: _equal,
    aten.record_stream.default: _record_stream,
}

Sharded.run = staticmethod(run_operator)
