"""Whether the CUDA kernels serve a device, found out once by running one."""

from __future__ import annotations

from functools import cache

import torch

import poolrt.transfer.kernels.cuda_body as cuda_body  # not `from` the package: that would close a circle
from poolrt.transfer.kernels.launch import Lanes, plan_copy
from poolrt.transfer.layout import Layout

_OLDEST = (7, 0)
"""compute capability: the first with __nanosleep, which the latch uses"""


def available(device: torch.device | str) -> str | None:
    """Why kernels cannot serve `device`, or None if they can. The first question about a card compiles a kernel."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"kernels are for CUDA cards; torch itself copies on {device.type} devices"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "this torch finds no CUDA card"
    return _reason(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _reason(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        return f"its compute capability is {capability[0]}.{capability[1]}, and kernels need {_OLDEST[0]}.{_OLDEST[1]}"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        extra = f"cuda{str(torch.version.cuda).partition('.')[0]}"
        return f"cupy cannot be imported ({error}); pip install 'poolrt[{extra}]'"
    try:
        return None if _copies(index) else "a copy of 31 bytes came out wrong; please report this card and its driver"
    except Exception as error:  # whatever stops the first kernel is the reason why there will be no second
        return f"the first kernel failed: {type(error).__name__}: {error}"


def _copies(index: int) -> bool:
    source = torch.arange(40, dtype=torch.uint8, device=f"cuda:{index}")
    target = torch.zeros_like(source)
    sides = [
        Layout(address=tensor.data_ptr() + first, item_nbytes=1, shape=(31,), strides=(1,))
        for tensor, first in ((target, 3), (source, 6))
    ]
    stream = torch.cuda.current_stream(index)
    for launch in plan_copy(sides[0], "uint8", sides[1], "uint8", Lanes()):
        cuda_body.run(launch, index, stream.cuda_stream)
    expected = [0] * 3 + list(range(6, 37)) + [0] * 6
    return bool(target.tolist() == expected)
