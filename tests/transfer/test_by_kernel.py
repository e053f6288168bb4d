"""Which copies are left to a kernel: the kernels themselves are stood in for, as there need be no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from poolrt.errors import ConfigurationError
from poolrt.transfer import by_kernel


class FakeGpuTensor:
    """As much of a tensor of a GPU as is looked at."""

    def __init__(self, tensor: torch.Tensor, card: int) -> None:
        self.tensor, self.device = tensor, torch.device("cuda", card)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that reach the kernels of GPUs 0 and 1; GPU 2 has none."""
    calls: list[str] = []

    def copy(source: Any, target: Any) -> None:
        if target.dtype == torch.uint8:
            raise ConfigurationError("a conversion that no kernel knows")
        calls.append("copy")

    kernels = SimpleNamespace(
        available=lambda device: "it is not there" if device.index == 2 else None,
        copy=copy,
        copy_many=lambda pairs: calls.append(f"copy_many of {len(pairs)}"),
    )
    monkeypatch.setattr(by_kernel, "kernels", kernels)
    return calls


def fake(card: int, dtype: torch.dtype = torch.float32, *, strided: bool = False) -> Any:
    whole = torch.zeros(4, 6, dtype=dtype)
    return FakeGpuTensor(whole[:, ::2] if strided else whole[:, :3].contiguous(), card)


def test_strided_and_converted_copies_from_gpu_to_gpu_take_a_kernel(served: list[str]) -> None:
    assert by_kernel.copied(fake(0, strided=True), fake(1))
    assert by_kernel.copied(fake(0), fake(1, torch.float16))
    assert served == ["copy", "copy"]


def test_the_rest_is_left_to_torch(served: list[str]) -> None:
    assert not by_kernel.copied(fake(0), fake(1))  # plain bytes
    assert not by_kernel.copied(fake(0, strided=True), fake(0))  # within one GPU
    assert not by_kernel.copied(fake(0, strided=True), fake(2))  # no kernels there
    assert not by_kernel.copied(torch.zeros(4, 6)[:, ::2], fake(1))
    assert not by_kernel.copied(fake(0, strided=True), fake(1, torch.uint8))  # the kernel refuses
    assert served == []


def test_many_go_in_one_launch_from_some_number_on(served: list[str]) -> None:
    enough = [(fake(0), fake(1))] * by_kernel.LEAST_PAIRS
    assert by_kernel.many_copied(enough)
    assert not by_kernel.many_copied(enough[1:])
    assert not by_kernel.many_copied([(fake(0), fake(2))] * by_kernel.LEAST_PAIRS)
    assert served == [f"copy_many of {by_kernel.LEAST_PAIRS}"]
