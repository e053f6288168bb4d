"""Views of sharded tensors: `p[3]`, `p.t()`, `p.view(-1)`. Reading one gathers, and writing one writes the pieces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor, alias, refuse_addresses


class ShardedView(Sharded):
    """The steps from a sharded tensor to a view of it, taken on the gathered whole whenever it is read."""

    _viewed: ShardedTensor
    _steps: tuple[Callable[[Tensor], Tensor], ...]
    _form: Tensor

    @staticmethod
    def __new__(
        cls: type[ShardedView], base: ShardedTensor, steps: tuple[Callable[[Tensor], Tensor], ...], form: Tensor
    ) -> ShardedView:
        """The view that `steps` make of `base`; `form`, on meta, has its shape and strides."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            form.shape,
            strides=form.stride(),
            storage_offset=form.storage_offset(),
            dtype=form.dtype,
            device=base.sharding.lead,
        )
        refuse_addresses(made)
        made._viewed, made._steps, made._form = base, steps, form
        return made

    def __init__(self, *args: Any) -> None:
        """All is said in __new__."""

    @classmethod
    def of(cls, tensor: Sharded, step: Callable[[Tensor], Tensor]) -> ShardedView:
        """The view that `step` makes of a sharded tensor or of a view of one."""
        with torch.inference_mode(tensor.is_inference()):  # a view is what its base is, whatever mode there is
            if isinstance(tensor, ShardedView):
                return cls(tensor._viewed, (*tensor._steps, step), step(tensor._form))
            assert isinstance(tensor, ShardedTensor)
            form = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            return cls(alias(tensor), (step,), step(form))

    @property
    def sharding(self) -> Sharding:
        """Where the pieces of what is viewed lie."""
        return self._viewed.sharding

    def whole(self, device: torch.device | str | None = None) -> Tensor:
        """The values in a new plain tensor."""
        return self._seen(self._viewed.whole(device))

    def write(self, whole: Tensor) -> None:
        """Put the values into the pieces of what is viewed."""
        base = self._viewed.whole()
        self._seen(base).copy_(whole)
        self._viewed.write(base)

    def _seen(self, base: Tensor) -> Tensor:
        for step in self._steps:
            base = step(base)
        return base

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedView:
        """The same view of a copy of the pieces."""
        if id(self) not in memo:
            memo[id(self)] = ShardedView(copy.deepcopy(self._viewed, memo), self._steps, self._form)
        return cast(ShardedView, memo[id(self)])

    def data_ptr(self) -> int:
        """As of what detach() gives, further on by as much as the view begins later."""
        return self._viewed.data_ptr() + int(self._form.storage_offset()) * self.element_size()

    def untyped_storage(self) -> torch.UntypedStorage:
        """As of what detach() gives."""
        return self._viewed.untyped_storage()
