"""A tensor as other libraries take it: DLPack (dlpack.readthedocs.io), without a copy.

A CUDA tensor speaks DLPack by itself. The memory of a virtual card is the host's, which no other library knows by the
card's name: it is handed over as what it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Exported:
    """What `numpy.from_dlpack`, `jax.dlpack.from_dlpack`, `cupy.from_dlpack` and others take.

    The receiver shares the tensor's memory and keeps it alive.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = torch.ops.vcard.host_view(tensor) if tensor.device.type == "vcard" else tensor

    def __dlpack__(self, **options: Any) -> Any:
        """The capsule."""
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's kind and number of the device."""
        kind, index = self._tensor.__dlpack_device__()
        return int(kind), index


def exported(tensor: Tensor) -> Exported:
    """`tensor` for other libraries. It must need no gradient: autograd does not follow it there.

    Raises:
        RuntimeError: torch's, if it needs one and is not detached.
    """
    if tensor.requires_grad:
        raise RuntimeError("a tensor that needs a gradient cannot be handed to another library: detach() it first")
    return Exported(tensor)
