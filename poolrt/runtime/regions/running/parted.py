"""A tensor whose last dimension lies in parts on several cards: what a column-split layer returns.

    logits [batch, length, vocabulary]        card 0: [.., 0..v0)      card 1: [.., v0..v1)

To everyone else it is one tensor on the lead card. What works on every element alone works on the parts; the
cross-entropy of the last dimension needs two numbers per row from each card; whatever else is done with it first brings
the parts together on the lead card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from poolrt.runtime.regions.running.keyed import on_keyed_cards
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic
from poolrt.runtime.regions.running.vocabulary_loss import parted_cross_entropy
from poolrt.transfer.collectives.exchange import Exchange
from poolrt.transfer.collectives.nodes import abreast

Function = Callable[..., Any]

_T = torch.Tensor
_POINTWISE: set[Function] = {
    F.gelu, F.relu, F.silu, F.dropout, F.softplus, F.leaky_relu, F.elu, F.mish, F.hardswish, F.sigmoid, F.tanh,
    torch.relu, torch.tanh, torch.sigmoid, torch.mul, torch.add, torch.sub, torch.div, torch.pow, torch.square,
    torch.exp, torch.sqrt, torch.rsqrt, torch.neg, torch.clone,
    _T.mul, _T.__mul__, _T.__rmul__, _T.add, _T.__add__, _T.__radd__, _T.sub, _T.__sub__, _T.div, _T.__truediv__,
    _T.pow, _T.__pow__, _T.square, _T.exp, _T.relu, _T.tanh, _T.sigmoid, _T.neg, _T.__neg__,
    _T.float, _T.double, _T.half, _T.bfloat16, _T.contiguous, _T.clone, _T.detach,
}  # fmt: skip
_WATCHED: set[Function] = {_T.register_hook, _T.retain_grad, _T.register_post_accumulate_grad_hook}
_LEAVES_TORCH: set[Function] = {
    _T.numpy, _T.tolist, _T.__array__, _T.__reduce_ex__, _T.__deepcopy__, _T.data_ptr, _T.untyped_storage,
}  # fmt: skip
_HANDLERS: dict[Function, Callable[..., Any]] = {}
_UNHANDLED = object()


class Parted(torch.Tensor):
    """One tensor in parts; make it with `part_together`."""

    parts: tuple[Tensor, ...] | None
    """by card; None once the tensor is needed whole"""
    sources: tuple[str, ...]
    """what made it, where a probe asks where values flow; they pass through work on single elements"""
    traffic: Traffic
    """where its copies count"""
    _whole: Tensor | None

    @staticmethod
    def __new__(
        cls: type[Parted], parts: Sequence[Tensor], lead: torch.device, sources: tuple[str, ...], traffic: Traffic
    ) -> Parted:
        """A wrapper without storage of its own."""
        shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        parted: Parted = _T._make_wrapper_subclass(cls, shape, dtype=parts[0].dtype, device=lead)
        parted.parts, parted.sources, parted.traffic, parted._whole = tuple(parts), sources, traffic, None
        return parted

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Parted({self.whole()!r})"

    def whole(self) -> Tensor:
        """The tensor on the lead card, without its history; from now on it is whole."""
        if self._whole is None:
            with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
                self._whole = _gathered(self, self.parts or ())
            self.parts = None
        return self._whole

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Work on the parts where that is the same."""
        kwargs = kwargs or {}
        result = _on_parts(func, args, kwargs)
        if result is not _UNHANDLED:
            return result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stub forgets the class
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Everything else is done with the whole tensor; autograd has recorded it above us."""
        changed = func._schema.is_mutable
        whole_args, whole_kwargs = tree_map(_unwrapped, (args, kwargs or {}))
        result = func(*whole_args, **whole_kwargs)
        return args[0] if changed and isinstance(args[0], Parted) else result


def part_together(
    parts: Sequence[Tensor], lead: torch.device, sources: tuple[str, ...] = (), traffic: Traffic = UNCOUNTED
) -> Tensor:
    """One tensor from parts of its last dimension, one on each card in order; it is on `lead` to all who ask."""
    if not torch.is_grad_enabled():
        parts = [part.detach() for part in parts]  # who asks later, with gradients, must find no history either
    parted: Tensor = _PartTogether.apply(lead, sources, traffic, *abreast(parts))
    return parted


def brought_together(tensor: Tensor) -> Tensor:
    """A plain tensor on the lead card, with its history, where the tensor lies in parts; else the tensor itself."""
    if not isinstance(tensor, Parted):
        return tensor
    if tensor.parts is None or not _has_its_parts_history(tensor):
        return tensor.view_as(tensor)
    return _gathered(tensor, tensor.parts)


def parts_of(tensor: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...] | None:
    """The parts of a tensor that has such in these sizes and was not needed whole; else None."""
    parts = tensor.parts if type(tensor) is Parted and _has_its_parts_history(tensor) else None
    return parts if parts is not None and [part.shape[-1] for part in parts] == list(sizes) else None


class _PartTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lead: torch.device, sources: tuple[str, ...], traffic: Traffic, *parts: Tensor) -> Parted:
        ctx.sizes = [part.shape[-1] for part in parts]
        ctx.exchange = _exchange(traffic, lead, parts)
        return Parted(parts, lead, sources, traffic)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.exchange.give_back(gradient.split(ctx.sizes, -1))


def _exchange(traffic: Traffic, lead: torch.device, parts: Sequence[Tensor]) -> Exchange:
    return traffic.exchange([lead, *(part.device for part in parts[1:])])


def _gathered(tensor: Parted, parts: Sequence[Tensor]) -> Tensor:
    with _exchange(tensor.traffic, tensor.device, parts) as exchange:
        return torch.cat(exchange.gather(parts), -1)


def _has_its_parts_history(tensor: Parted) -> bool:
    """Whether a gradient for the parts is one for the tensor.

    It is not where the tensor was made a leaf, or came out of a function of the user's own, whose backward would be
    passed by.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return not tensor.requires_grad or isinstance(tensor.grad_fn, _PartTogether._backward_cls)


def _unwrapped(value: Any) -> Any:
    return value.whole() if isinstance(value, Parted) else value


def _on_parts(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    parted = [tensor for tensor in tensors if isinstance(tensor, Parted)]
    if func in _LEAVES_TORCH:
        return func(brought_together(parted[0]), *args[1:], **kwargs)
    for tensor in parted:
        if not _has_its_parts_history(tensor):
            tensor.whole()
    if any(tensor.parts is None for tensor in parted):
        return _UNHANDLED
    if func in _POINTWISE:
        return _pointwise(func, parted, tensors, args, kwargs)
    if func in _WATCHED:
        parted[0].whole()
        return _UNHANDLED
    handler = _HANDLERS.get(func)
    return _UNHANDLED if handler is None else handler(*args, **kwargs)


def _pointwise(
    func: Function, parted: list[Parted], tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    first = parted[0]
    sizes = [part.shape[-1] for part in first.parts or ()]
    alike = all(_shape(x) == _shape(first) and parts_of(x, sizes) is not None for x in parted)
    others = [tensor for tensor in tensors if not isinstance(tensor, Parted)]
    if not alike or any(tensor.dim() for tensor in others) or "out" in kwargs or kwargs.get("inplace"):
        return _UNHANDLED

    on_cards: dict[int, Sequence[Tensor]] = {}
    if others:
        with _exchange(first.traffic, first.device, first.parts or ()) as exchange:
            on_cards = {id(tensor): exchange.fork(tensor) for tensor in others}
            exchange.land_all()

    def at(card: int) -> Callable[[Any], Any]:
        def pick(value: Any) -> Any:
            if isinstance(value, Parted):
                return (value.parts or ())[card]
            return on_cards[id(value)][card] if isinstance(value, Tensor) else value

        return pick

    def on_card(card: int) -> Tensor:
        result: Tensor = func(*tree_map(at(card), args), **tree_map(at(card), kwargs))
        return result

    if func is F.dropout and _drops(*args, **kwargs):
        results, _ = on_keyed_cards(on_card, [part.device for part in first.parts or ()])
    else:
        results = [on_card(card) for card in range(len(sizes))]
    sources = tuple(dict.fromkeys(name for x in parted for name in x.sources))
    return part_together(results, first.device, sources, first.traffic)


def _drops(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:  # noqa: A002
    """Whether a dropout with these arguments draws; in place or not."""
    return training and p > 0


def _handles(*functions: Function) -> Callable[[Function], Function]:
    def register(handler: Function) -> Function:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


@_handles(_T.view, _T.reshape, torch.reshape)
def _view(tensor: Parted, *shape: Any) -> Any:
    """A view that leaves the last dimension alone."""
    wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not wanted or wanted[-1] != _shape(tensor)[-1]:
        return _UNHANDLED
    return _remade(tensor, [part.reshape(*wanted[:-1], part.shape[-1]) for part in tensor.parts or ()])


@_handles(_T.flatten, torch.flatten)
def _flatten(tensor: Parted, start_dim: int = 0, end_dim: int = -1) -> Any:
    if end_dim % tensor.dim() == tensor.dim() - 1:
        return _UNHANDLED
    return _remade(tensor, [part.flatten(start_dim, end_dim) for part in tensor.parts or ()])


@_handles(_T.to)
def _to(tensor: Parted, *args: Any, **kwargs: Any) -> Any:
    """Another dtype; the device is what others see of it, and stays."""
    places = [x for x in (*args, *kwargs.values()) if isinstance(x, (torch.device, str, int, Tensor)) and x is not True]
    if any(isinstance(x, Tensor) or (type(x) is not bool and torch.device(x) != tensor.device) for x in places):
        return _UNHANDLED
    dtypes = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]
    return tensor if not dtypes else _remade(tensor, [part.to(dtypes[0]) for part in tensor.parts or ()])


@_handles(_T.__getitem__)
def _getitem(tensor: Parted, index: Any) -> Any:
    """Slices of the dimensions before the last one."""
    indices = index if isinstance(index, tuple) else (index,)
    plain = [item for item in indices if item is not Ellipsis]
    if not all(item is None or isinstance(item, (slice, int)) for item in plain) or any(item is None for item in plain):
        return _UNHANDLED
    reaches_last = len(plain) == tensor.dim() or (Ellipsis in indices and indices[-1] is not Ellipsis)
    if reaches_last and indices[-1] != slice(None):
        return _UNHANDLED
    return _remade(tensor, [part[index] for part in tensor.parts or ()])


@_handles(_T.argmax, torch.argmax)
def _argmax(tensor: Parted, dim: int | None = None, keepdim: bool = False) -> Any:
    """The first of the largest, of the last dimension."""
    if dim is None or dim % tensor.dim() != tensor.dim() - 1:
        return _UNHANDLED
    parts = tensor.parts or ()
    found = [part.detach().max(-1, keepdim=keepdim) for part in parts]
    with _exchange(tensor.traffic, tensor.device, parts) as exchange:
        largest = [exchange.gather([one[place] for one in found]) for place in (0, 1)]
    best, where, offset = largest[0][0], largest[1][0], 0
    for part, value, index in zip(parts[:-1], largest[0][1:], largest[1][1:], strict=True):
        offset += part.shape[-1]
        where = torch.where(value > best, index + offset, where)
        best = torch.maximum(best, value)
    return where


@_handles(F.cross_entropy)
def _cross_entropy(input: Parted, target: Tensor, weight: Tensor | None = None, *rest: Any, **options: Any) -> Any:  # noqa: A002
    options = {name: option for name, option in options.items() if option is not None}  # torch names what is left out
    by_class = input.dim() == 2 and target.dim() == 1 and not target.is_floating_point()
    if rest or weight is not None or not by_class or options.keys() - {"ignore_index", "reduction", "label_smoothing"}:
        return _UNHANDLED
    return parted_cross_entropy(input.parts or (), target, input.device, input.traffic, **options)


def _shape(tensor: Tensor) -> torch.Size:
    return tensor.shape


def _remade(original: Parted, parts: Sequence[Tensor]) -> Tensor:
    return part_together(parts, original.device, original.sources, original.traffic)
