"""A tensor whose pieces live on several cards: full shape, and no storage but the pieces.

    ShardedTensor(12, 8)          reading the whole gathers, writing it scatters
      |-- piece 0 (6, 8) vcard:0
      '-- piece 1 (6, 8) vcard:1

The pieces are the one place where values are. What detach() and views of it give are other names of the same pieces, so
there is nothing that could drift from them. `operators` says how each of torch's operators works on them. The means are
torch's wrapper subclasses (https://docs.pytorch.org/docs/stable/notes/extending.html#subclassing-torch-tensor).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from poolrt.errors import ModelError
from poolrt.runtime.sharded.sharding import Sharding, dense_strides

Operator = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_SAVED = "_poolrt_saved"
"""attribute of a first piece: what `host_copy` gave last, and of which values"""


class Sharded(torch.Tensor):
    """What stands for values in pieces: reads them into a plain tensor, and writes them back from one."""

    run: ClassVar[Operator]
    """set by `operators`"""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        return Sharded.run(func, args, kwargs or {})

    @property
    def sharding(self) -> Sharding:
        """Where the pieces lie."""
        raise AssertionError("each kind says it")

    def whole(self, device: torch.device | str | None = None) -> Tensor:
        """The values in a new plain tensor, on the first card unless told otherwise."""
        raise AssertionError("each kind says it")

    def write(self, whole: Tensor) -> None:
        """Put the values of a plain tensor of this shape into the pieces."""
        raise AssertionError("each kind says it")

    def numpy(self, *, force: bool = False) -> Any:
        """As for any tensor on a card: the host's copy if `force`, and else an error that says how to get one."""
        if force:
            return self.whole("cpu").resolve_conj().numpy()
        raise TypeError(f"{_describe(self)} lies on cards; use .cpu().numpy(), or numpy(force=True), for a copy of it")

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.whole("cpu").tolist()

    def data_ptr(self) -> int:
        """There is no one address.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{_describe(self)} has no address, since its pieces lie on several cards; give a kernel poolrt's pieces "
            "or .clone() of .cpu(), and compare .detach().data_ptr() to see whether two tensors share their values"
        )

    def untyped_storage(self) -> torch.UntypedStorage:
        """There is no one storage.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{_describe(self)} has no storage of its own: its pieces lie on several cards")

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """There is no one memory that another library could read.

        Raises:
            BufferError: always, as the protocol has it.
        """
        raise BufferError(f"{_describe(self)} lies on several cards; hand over .cpu(), or one of poolrt's pieces")

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the whole tensor on the host: whoever loads it needs neither cards nor poolrt."""
        return host_copy(self).__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        where = ", ".join(map(str, self.sharding.devices))
        values = str(self.whole("cpu")).removesuffix(")")
        return f"{values}, pieces=({where}))"


def refuse_addresses(tensor: Tensor) -> None:
    """Have C++ code that asks for the address of a wrapper, which has no memory, fail instead of getting null.

    Private, but the means that torch's own wrappers use for it (torch/_subclasses/functional_tensor.py).
    """
    torch._C._set_throw_on_mutable_data_ptr(tensor)


class ShardedTensor(Sharded):
    """The whole of some pieces."""

    _pieces: list[Tensor]
    _sharding: Sharding
    _is_alias = False

    @staticmethod
    def __new__(
        cls: type[ShardedTensor],
        pieces: Sequence[Tensor],
        sharding: Sharding,
        strides: Sequence[int] | None = None,
        requires_grad: bool = False,
    ) -> ShardedTensor:
        """Name the whole of `pieces`, which are plain tensors without a graph; nothing is copied."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            sharding.shape,
            strides=dense_strides(sharding.shape, strides or pieces[0].stride()),
            dtype=pieces[0].dtype,
            device=sharding.lead,
            requires_grad=requires_grad,
        )
        refuse_addresses(made)
        made._pieces, made._sharding = list(pieces), sharding
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """All is said in __new__."""

    @property
    def sharding(self) -> Sharding:
        """Where the pieces lie."""
        return self._sharding

    @property
    def pieces(self) -> tuple[Tensor, ...]:
        """The values, one plain tensor per card; writing them is writing the whole."""
        return tuple(self._pieces)

    def whole(self, device: torch.device | str | None = None) -> Tensor:
        """The values in a new plain tensor, on the first card unless told otherwise.

        Raises:
            torch.OutOfMemoryError: if there is no room for it there.
        """
        target = torch.empty_strided(
            self._sharding.shape, self.stride(), dtype=self.dtype, device=device or self._sharding.lead
        )
        return self._sharding.gather(self._pieces, target)

    def write(self, whole: Tensor) -> None:
        """Put the values of a plain tensor of this shape into the pieces."""
        for card, piece in enumerate(self._pieces):
            self._sharding.fill_piece(piece, whole, card)
        self.mark_changed()

    def mark_changed(self) -> None:
        """Tell autograd that the pieces have other values: a graph that saved the old ones refuses its backward."""
        torch.autograd.graph.increment_version([piece for piece in self._pieces if not piece.is_inference()])

    @property
    def data(self) -> Tensor:
        """Another name of the pieces, out of autograd's sight."""
        with torch.no_grad():
            return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        """Be the name of other pieces; see take_values."""
        self.take_values(value)

    @data.deleter
    def data(self) -> None:
        """Refused, as of any tensor."""
        raise RuntimeError("cannot delete data of a tensor")

    def take_values(self, value: Tensor) -> None:
        """Be the name of other pieces: those of `value`, or new ones with its values. Others keep the old ones.

        Raises:
            ModelError: if `value` has another shape or lies elsewhere.
        """
        if value is self:
            return
        sharding = self._sharding
        elsewhere = value.device != sharding.lead or (isinstance(value, Sharded) and value.sharding != sharding)
        if tuple(value.shape) != sharding.shape or elsewhere:
            raise ModelError(
                f"{_describe(self)} cannot take the values of a tensor of shape {tuple(value.shape)} on {value.device}:"
                " its pieces stay as they are split; undo the split first (unshard_parameters), then move or reshape"
            )
        if isinstance(value, ShardedTensor):
            self._pieces = list(value._pieces)
        else:
            self._pieces = sharding.scatter(value.whole() if isinstance(value, Sharded) else value.detach())
        if value.dtype != self.dtype:
            form = ShardedTensor(self._pieces, sharding, self.stride())
            torch.Tensor.data.__set__(self, form)  # type: ignore[attr-defined]

    def data_ptr(self) -> int:
        """An address for what detach() gave, and so for what a state_dict holds; none for others.

        Writers of checkpoints compare addresses to find weights that are tied. This one, the first piece's, tells
        whether two are names of the same pieces. It is not for reading: a kernel would leave the piece.

        Raises:
            ModelError: if this is no other name of a tensor but itself.
        """
        return self._first_piece().data_ptr() if self._is_alias else super().data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The first piece's, on the terms of data_ptr.

        Raises:
            ModelError: if this is no other name of a tensor but itself.
        """
        return self._first_piece().untyped_storage() if self._is_alias else super().untyped_storage()

    def _first_piece(self) -> Tensor:
        return next((piece for piece in self._pieces if piece.numel()), self._pieces[0])

    def __copy__(self) -> Tensor:
        return self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTensor:
        """Sharded likewise: no card need hold the whole. Two names of the same pieces stay that."""
        if id(self) not in memo:
            copied = ShardedTensor(copy_pieces(self, memo), self._sharding, self.stride())
            copied._is_alias = self._is_alias
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return cast(ShardedTensor, memo[id(self)])


def alias(tensor: ShardedTensor) -> ShardedTensor:
    """Another name of the same pieces."""
    with torch.inference_mode(tensor.is_inference()):  # a view is what its base is, whatever mode there is
        named = ShardedTensor(tensor.pieces, tensor.sharding, tensor.stride())
    named._is_alias = True
    return named


def host_copy(tensor: Sharded) -> Tensor:
    """The whole on the host; the one of a moment ago if a pickle in the making still holds it.

    So weights that are tied are saved once, as they are of any tensor.
    """
    if not isinstance(tensor, ShardedTensor) or any(piece.is_inference() for piece in tensor.pieces):
        return tensor.whole("cpu")
    versions = [(id(piece), piece._version) for piece in tensor.pieces]
    known, reference = getattr(tensor.pieces[0], _SAVED, (None, lambda: None))
    storage = reference()
    if known == versions and storage is not None:
        return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
    whole = tensor.whole("cpu")
    setattr(tensor.pieces[0], _SAVED, (versions, weakref.ref(whole.untyped_storage())))
    return whole


def nbytes_by_device(tensor: Tensor) -> dict[torch.device, int]:
    """How many bytes of `tensor`, sharded or not, lie on each device."""
    total: dict[torch.device, int] = {}
    for piece in tensor.pieces if isinstance(tensor, ShardedTensor) else (tensor,):
        total[piece.device] = total.get(piece.device, 0) + piece.nbytes
    return total


def copy_pieces(tensor: ShardedTensor, memo: dict[int, Any]) -> list[Tensor]:
    """Copies of the pieces, the same ones for every name of them that one deepcopy meets."""
    for piece in tensor.pieces:
        if id(piece) not in memo:
            memo[id(piece)] = piece.clone()
    return [memo[id(piece)] for piece in tensor.pieces]


def _describe(tensor: Sharded) -> str:
    where = ", ".join(map(str, tensor.sharding.devices))
    return f"a tensor of shape {tuple(tensor.shape)} split over {where}"
