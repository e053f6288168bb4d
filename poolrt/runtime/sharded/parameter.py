"""A parameter whose pieces live on several cards, and how gradients of the pieces become its gradient.

    parameter (leaf, whole) --+-- used whole: gathered for the operator
                              |--[ join ]-- piece 0 on card 0
                              '--[ join ]-- piece 1 on card 1: what rewritten regions use

The whole is autograd's leaf. Each piece hangs on it through a node, whose backward names the piece's gradient as one of
the whole, without a copy. So hooks, `.grad`, torch.autograd.grad, accumulation and gradients of gradients are torch's
own.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from poolrt.errors import ModelError
from poolrt.runtime.sharded.gradients import GradientOfPiece, IntoPieces, put_first, shard_tensor
from poolrt.runtime.sharded.partial import PartialGradient
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor, copy_pieces, host_copy

_OWN = frozenset({"_pieces", "_sharding", "_joined", "_watched", "_cut_off", "origin"})
"""attributes of the object that are not the user's"""


class ShardedParameter(ShardedTensor, nn.Parameter):
    """An nn.Parameter in pieces. Made by `shard_parameter`, in the place of the user's own object."""

    _joined: dict[int, weakref.ref[Tensor]]
    _watched: bool
    _cut_off: bool
    origin: torch.device
    """where it was before it was split"""

    @staticmethod
    def __new__(
        cls: type[ShardedParameter], pieces: Sequence[Tensor], sharding: Sharding, strides: Sequence[int], learns: bool
    ) -> ShardedParameter:
        """The parameter that `pieces` are; nothing is copied."""
        made = cast(ShardedParameter, ShardedTensor.__new__(cls, pieces, sharding, strides, learns))
        made._joined, made._watched, made._cut_off, made.origin = {}, False, False, sharding.lead
        made._watch()
        return made

    # ---- gradients

    def _watch(self) -> None:
        """A gradient of the whole is put into pieces before anyone else sees it."""
        if self._watched or not self.requires_grad:
            return
        self._watched = True
        handle = self.register_hook(IntoPieces(self._sharding))
        hooks = cast("OrderedDict[int, Any]", self._backward_hooks)
        put_first(hooks, {handle.id: hooks.pop(handle.id)})

    @property
    def requires_grad(self) -> bool:
        """Whether it learns; the pieces learn with it."""
        return bool(torch.Tensor.requires_grad.__get__(self))  # type: ignore[attr-defined]

    @requires_grad.setter
    def requires_grad(self, learns: bool) -> None:
        """Have it learn or not; the pieces with it."""
        torch.Tensor.requires_grad.__set__(self, learns)  # type: ignore[attr-defined]
        self._watch()
        self._rejoin()

    def requires_grad_(self, requires_grad: bool = True) -> ShardedParameter:
        """Whether it learns from now on; the pieces learn with it."""
        self.requires_grad = requires_grad
        return self

    # ---- pieces in autograd's graph

    def joined_pieces(self) -> list[Tensor]:
        """The pieces, as `pieces` gives them."""
        known = (self._in_use(card) for card in self._sharding.cards)
        return [self._join_new(card) if piece is None else piece for card, piece in enumerate(known)]

    def _in_use(self, card: int) -> Tensor | None:
        """The piece that was given out for `card`, if someone still holds it."""
        reference = self._joined.get(card)
        return None if reference is None else reference()

    def _join_new(self, card: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            piece = self._pieces[card].detach()
        self._joined[card] = weakref.ref(piece)
        self._join(card, piece)
        return piece

    def _join(self, card: int, piece: Tensor) -> None:
        """Hang the piece on the leaf if that learns; one that is cut off learns by itself."""
        if self._cut_off:
            piece.requires_grad_(self.requires_grad)
        elif self.requires_grad:
            with torch.inference_mode(False), torch.enable_grad():
                _Join.apply(self, card, piece)

    def pieces_in_use(self) -> list[Tensor]:
        """Those that `pieces` gave out and that someone still holds."""
        return [piece for card in self._sharding.cards if (piece := self._in_use(card)) is not None]

    def _rejoin(self) -> None:
        """Hang the pieces that are in use on the leaf, or take them off, as it learns or not."""
        for card in self._sharding.cards:
            piece = self._in_use(card)
            if piece is not None:
                piece.detach_()
                self._join(card, piece)

    def cut_off(self, cut: bool) -> None:
        """Have the pieces be leaves of their own, or hang on the parameter again; see `cut_off_pieces`."""
        self._cut_off = cut
        self._rejoin()

    def take_gradient(self) -> ShardedTensor | None:
        """The gradient that pieces which are cut off have gathered, out of their hands; None if there is none."""
        parts: list[Tensor | None] = [None for _ in self._sharding.cards]
        for card in self._sharding.cards:
            piece = self._in_use(card)
            if piece is not None and piece.is_leaf:
                parts[card], piece.grad = piece.grad, None
        return _completed(parts, self)

    def take_values(self, value: Tensor) -> None:
        """As of any sharded tensor; the pieces that are in use follow."""
        super().take_values(value)
        for card in self._sharding.cards:
            piece = self._in_use(card)
            if piece is not None:
                piece.detach_()
                piece.data = self._pieces[card]
                self._pieces[card] = piece.detach()  # so that both count changes together
        self._rejoin()

    def assign(self, value: Tensor) -> None:
        """Have the values and the type of `value`, from any device: the pieces of one that is split likewise, or new.

        Raises:
            torch.OutOfMemoryError: if a card has no room for its new piece; nothing has changed then.
        """
        alike = isinstance(value, ShardedTensor) and value.sharding == self._sharding
        self.take_values(value if alike else shard_tensor(value.detach(), self._sharding))

    # ---- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedParameter:
        """Sharded likewise, without gradient and hooks, as of any parameter."""
        if id(self) not in memo:
            copied = ShardedParameter(copy_pieces(self, memo), self._sharding, self.stride(), self.requires_grad)
            copied.origin = self.origin
            memo[id(self)] = copied
        return cast(ShardedParameter, memo[id(self)])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as an ordinary parameter on the host."""
        plain = nn.Parameter(host_copy(self), requires_grad=self.requires_grad)
        vars(plain).update(users_attributes(self))
        return plain.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Parameter containing:\n{super().__repr__()}"

    # ---- what nn.Module may put in its place

    def _check_replacement(self, converted: Tensor) -> None:
        where = ", ".join(map(str, self._sharding.devices))
        if not isinstance(converted, Sharded):
            raise ModelError(
                f"the model's parameters are split over {where} and cannot be moved to {converted.device}; to have "
                "them elsewhere, load the model's state_dict() into a fresh model there"
            )
        exchanges = torch.__future__.get_swap_module_params_on_conversion()
        if exchanges or torch.__future__.get_overwrite_module_params_on_conversion():
            raise ModelError(
                f"the model's parameters are split over {where}, and torch is set to exchange the parameters of a "
                "converted module (torch.__future__); their pieces are in use, so convert the model before it is split"
            )

    def module_load(self, other: Tensor, assign: bool = False) -> Tensor:
        """Asked for instead of a copy where torch is set to exchange the parameters of a module that loads.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "a parameter that is split over cards is not exchanged for a loaded one; load with "
            "torch.__future__.set_swap_module_params_on_conversion(False)"
        )

    @classmethod
    def __torch_function__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """All as usual, but for nn.Module's question whether a converted parameter can take this one's place."""
        if func is torch._has_compatible_shallow_copy_type:
            args[0]._check_replacement(args[1])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class _Join(torch.autograd.Function):
    """Hangs a piece on its parameter, in place, so that whoever holds it need not learn of it.

    It saves no tensors, so the one node serves every forward and backward of the parameter's life.
    """

    @staticmethod
    def forward(ctx: Any, whole: ShardedParameter, card: int, piece: Tensor) -> Tensor:
        """The piece itself."""
        ctx.mark_dirty(piece)
        ctx.sharding, ctx.strides, ctx.card = whole.sharding, whole.stride(), card
        return piece

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """The whole's gradient, as far as this piece knows it."""
        return GradientOfPiece.apply(ctx.sharding, ctx.strides, ctx.card, gradient), None, None


def users_attributes(parameter: nn.Parameter) -> dict[str, Any]:
    """What the user (or a library) has set on the parameter object."""
    return {name: value for name, value in vars(parameter).items() if name not in _OWN}


def pieces(parameter: nn.Parameter) -> list[Tensor]:
    """The pieces of a sharded parameter, one per card, for computations on the cards.

    They are the same objects for as long as someone holds them, whatever happens to the parameter's values, dtype or
    `requires_grad`. Their gradients go to the parameter; they have none themselves. Put them into a module's
    `_parameters` as they are: an nn.Parameter made of one would be cut off.

    Raises:
        ModelError: if the parameter is not sharded.
    """
    return _sharded(parameter).joined_pieces()


def cut_off_pieces(parameter: nn.Parameter, cut: bool = True) -> None:
    """Have the pieces be leaves that gather gradients of their own, as a cut node wants it; or no longer.

    The objects that `pieces` gives stay the same. `take_gradient` brings the gradients together.

    Args:
        parameter: the whole.
        cut: False for the pieces to hang on the parameter again.

    Raises:
        ModelError: if the parameter is not sharded.
    """
    _sharded(parameter).cut_off(cut)


def take_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of a parameter whose pieces are cut off, from those of its pieces, which have none afterwards.

    Nothing is copied. It is what a backward returns for the parameter; None if no piece has a gradient.

    Raises:
        ModelError: if the parameter is not sharded.
    """
    return _sharded(parameter).take_gradient()


def gradient_from_pieces(parameter: nn.Parameter, gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The gradient of a sharded parameter from those of stand-ins for its pieces; None if none has one.

    Args:
        parameter: the whole.
        gradients: one per card, on that card; they are part of the result, not copied.

    Raises:
        ModelError: if the parameter is not sharded.
    """
    parts = [None if gradient is None else gradient.detach() for gradient in gradients]
    return _completed(parts, _sharded(parameter))


def _sharded(parameter: nn.Parameter) -> ShardedParameter:
    if not isinstance(parameter, ShardedParameter):
        raise ModelError(f"a parameter of shape {tuple(parameter.shape)} on {parameter.device} is not split over cards")
    return parameter


def _completed(parts: Sequence[Tensor | None], parameter: ShardedParameter) -> ShardedTensor | None:
    if all(part is None for part in parts):
        return None
    return PartialGradient(parts, parameter.sharding, parameter.stride()).completed()
