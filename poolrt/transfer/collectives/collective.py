"""Broadcast, reduce, all-reduce, gather and scatter among the cards of one process, with gradients.

    forward                                      backward
    broadcast       x -> x, x, x                 reduce
    reduce          x0, x1, x2 -> sum            broadcast
    all_reduce      x0, x1, x2 -> sum, sum, sum  all_reduce
    gather          x0, x1, x2 -> x0|x1|x2       scatter
    scatter         x0|x1|x2 -> x0, x1, x2       gather
    all_gather      gather on every card         reduce_scatter
    reduce_scatter  scatter of the sum           all_gather

A list of tensors is a list of cards: entry k is what card k brings or gets. Cards are added in the order of the list,
so a sum has the same bits whichever card asks, and twice the same; a ring adds each piece in an order turned round: the
same bits on all cards, within the usual error of a sum of n terms of the others'. Half-precision sums are kept in
float32 and rounded once; a ring rounds at every card.

Everything is in order with the cards' current streams: results may be read, and what was brought may be written to, as
after any operation. Where nobody will write to it before the results are read, `unchanged=True` spares its card the
wait until it has been sent: a fork's first card starts to compute at once.

What is on its card already is not copied, and cards that share a device may share what they get: change no result in
place (autograd refuses it where it can see it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from poolrt.transfer.collectives import forward as forward_only
from poolrt.transfer.collectives.arguments import (
    Span,
    check_alike,
    check_joinable,
    check_strided,
    checked_devices,
    dimension,
    spans_of,
)
from poolrt.transfer.collectives.forward import How, Way


def broadcast(
    tensor: Tensor, devices: Sequence[torch.device | str], *, way: Way = None, unchanged: bool = False
) -> list[Tensor]:
    """A copy of `tensor` on every device; where it lies already, a view of it.

    Raises:
        ConfigurationError: for no devices, or a tensor that is not strided.
    """
    check_strided([tensor])
    return list(_Broadcast.apply(tensor, checked_devices(devices), How(way, unchanged)))


def reduce(
    tensors: Sequence[Tensor], device: torch.device | str, *, way: Way = None, unchanged: bool = False
) -> Tensor:
    """The sum of the tensors, on `device`.

    Raises:
        ConfigurationError: for no tensors, or tensors of different shapes or types.
    """
    check_alike(tensors)
    total: Tensor = _Reduce.apply(*checked_devices([device]), How(way, unchanged), *tensors)
    return total


def all_reduce(tensors: Sequence[Tensor], *, way: Way = None, unchanged: bool = False) -> list[Tensor]:
    """The sum of the tensors, on the device of each.

    Raises:
        ConfigurationError: for no tensors, or tensors of different shapes or types.
    """
    check_alike(tensors)
    return list(_AllReduce.apply(How(way, unchanged), *tensors))


def gather(tensors: Sequence[Tensor], device: torch.device | str, dim: int = 0) -> Tensor:
    """The tensors one after another along `dim`, on `device`. They may differ in length along it.

    Raises:
        ConfigurationError: for no tensors, or tensors that cannot be joined so.
    """
    whole: Tensor = _Gather.apply(*checked_devices([device]), check_joinable(tensors, dim), *tensors)
    return whole


def scatter(
    tensor: Tensor, devices: Sequence[torch.device | str], dim: int = 0, sizes: Sequence[int] | None = None
) -> list[Tensor]:
    """Consecutive parts of `tensor` along `dim`, one on each device; a part that is to stay is a view.

    Args:
        tensor: what to cut.
        devices: where the parts go.
        dim: the dimension that is cut.
        sizes: the lengths of the parts; by default as equal as can be.

    Raises:
        ConfigurationError: for no devices, or sizes that do not sum to the tensor's.
    """
    check_strided([tensor])
    homes, dim = checked_devices(devices), dimension(dim, tensor)
    return list(_Scatter.apply(tensor, homes, dim, spans_of(tensor, dim, len(homes), sizes)))


def all_gather(tensors: Sequence[Tensor], dim: int = 0, *, way: Way = None) -> list[Tensor]:
    """The tensors one after another along `dim`, on the device of each. They may differ in length along it.

    Raises:
        ConfigurationError: for no tensors, or tensors that cannot be joined so.
    """
    return list(_AllGather.apply(check_joinable(tensors, dim), How(way), *tensors))


def reduce_scatter(tensors: Sequence[Tensor], dim: int = 0, sizes: Sequence[int] | None = None) -> list[Tensor]:
    """Of the sum of the tensors, consecutive parts along `dim`: part k on the device of tensor k.

    Raises:
        ConfigurationError: for no tensors, tensors of different shapes or types, or sizes that do not sum to theirs.
    """
    check_alike(tensors)
    dim = dimension(dim, tensors[0])
    return list(_ReduceScatter.apply(dim, spans_of(tensors[0], dim, len(tensors), sizes), *tensors))


def _plain(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _seen_as_views(results: Iterable[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results in the memory of an input, as views of it: autograd then refuses to let them be changed in place."""

    def seen(result: Tensor) -> Tensor:
        for given in inputs:
            if given.device == result.device and given.data_ptr() == result.data_ptr() and given.shape == result.shape:
                return given.view_as(given)
        return result

    return tuple(seen(result) for result in results)


def _to_all(gradient: Tensor, homes: Sequence[torch.device], needed: Sequence[bool], way: Way) -> list[Tensor | None]:
    """The gradient for every input that asks for one."""
    wanted = [home for home, need in zip(homes, needed, strict=True) if need]
    copies = iter(broadcast(gradient, wanted, way=way) if wanted else ())
    return [next(copies) if need else None for need in needed]


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, homes: list[torch.device], how: How) -> tuple[Tensor, ...]:
        ctx.device, ctx.way = tensor.device, how.way
        ctx.set_materialize_grads(False)
        return _seen_as_views(forward_only.broadcast(tensor.detach(), homes, how), [tensor])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        return (reduce(present, ctx.device, way=ctx.way) if present else None), None, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, device: torch.device, how: How, *tensors: Tensor) -> Tensor:
        ctx.homes, ctx.way = [tensor.device for tensor in tensors], how.way
        (total,) = _seen_as_views([forward_only.reduce(_plain(tensors), device, how)], tensors)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        return None, None, *_to_all(gradient, ctx.homes, ctx.needs_input_grad[2:], ctx.way)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: How, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.homes, ctx.way = [tensor.device for tensor in tensors], how.way
        ctx.set_materialize_grads(False)
        return _seen_as_views(forward_only.all_reduce(_plain(tensors), how), tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return None, *(None for _ in ctx.homes)
        if len(present) == len(ctx.homes):
            return None, *all_reduce(present, way=ctx.way)
        total = reduce(present, present[0].device, way=ctx.way)
        return None, *_to_all(total, ctx.homes, ctx.needs_input_grad[1:], ctx.way)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, device: torch.device, dim: int, *tensors: Tensor) -> Tensor:
        ctx.homes, ctx.dim = [tensor.device for tensor in tensors], dim
        ctx.sizes = [tensor.shape[dim] for tensor in tensors]
        return forward_only.gather(_plain(tensors), device, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *scatter(gradients[0], ctx.homes, ctx.dim, ctx.sizes)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, homes: list[torch.device], dim: int, spans: list[Span]) -> tuple[Tensor, ...]:
        ctx.device, ctx.dim = tensor.device, dim
        parts = [tensor.narrow(dim, begin, end - begin) for begin, end in spans]
        return _seen_as_views(forward_only.scatter(tensor.detach(), homes, dim, spans), parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return gather(gradients, ctx.device, ctx.dim), None, None, None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dim: int, how: How, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.homes, ctx.dim, ctx.way = [tensor.device for tensor in tensors], dim, how.way
        ctx.sizes = [tensor.shape[dim] for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(forward_only.all_gather(_plain(tensors), dim, how))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return None, None, *(None for _ in ctx.homes)
        if len(present) == len(ctx.homes):
            return None, None, *reduce_scatter(present, ctx.dim, ctx.sizes)
        total = reduce(present, present[0].device, way=ctx.way)
        return None, None, *scatter(total, ctx.homes, ctx.dim, ctx.sizes)


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dim: int, spans: list[Span], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return tuple(forward_only.reduce_scatter(_plain(tensors), dim, spans))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *all_gather(gradients, ctx.dim)
