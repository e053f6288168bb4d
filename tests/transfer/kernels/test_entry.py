"""What the kernels' functions for tensors say before any card is asked; tests/gpu has them at work."""

import pytest
import torch

from poolrt.errors import ConfigurationError
from poolrt.transfer import kernels
from poolrt.transfer.kernels.tensors import layout_of, runs_of, type_name
from poolrt.transfer.layout import Layout


@pytest.mark.parametrize("call", [kernels.copy, kernels.add, lambda *pair: kernels.copy_many([pair])])
def test_tensors_that_torch_copies_itself_are_refused(call):
    source, target = torch.ones(3), torch.zeros(3)
    with pytest.raises(ConfigurationError, match="cpu"):
        call(source, target)
    assert target.tolist() == [0, 0, 0]


def test_the_reason_names_the_device():
    assert "cpu" in kernels.available("cpu")
    assert kernels.available(torch.device("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_neither_kernel_nor_latch():
    assert kernels.available("cuda:0")
    with pytest.raises(ConfigurationError):
        kernels.Latch("cuda:0")


def test_nothing_to_copy_needs_no_card():
    kernels.copy_many([])


def test_a_tensors_layout():
    tensor = torch.zeros(4, 6, dtype=torch.float64)[1:, ::2].t()
    expected = Layout(address=tensor.data_ptr(), item_nbytes=8, shape=(3, 3), strides=(2, 6))
    assert layout_of(tensor) == expected
    assert type_name(torch.bfloat16) == "bfloat16"


CONJUGATE = torch.zeros(2, dtype=torch.complex64).conj()


@pytest.mark.parametrize(
    "tensor",
    [CONJUGATE, CONJUGATE.imag, torch.eye(2).to_sparse()],
    ids=["lazy conjugate", "lazy negative", "sparse"],
)
def test_tensors_without_plain_elements_are_refused(tensor):
    with pytest.raises(ConfigurationError):
        layout_of(tensor)


def test_runs():
    sources, targets = [torch.zeros(3), torch.zeros(0)], [torch.zeros(3), torch.zeros(0)]
    runs = runs_of(sources, targets)
    assert runs[:, 2].tolist() == [12, 0]
    assert runs[0, :2].tolist() == [targets[0].data_ptr(), sources[0].data_ptr()]


@pytest.mark.parametrize(
    "pair",
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(4, 4).t(), torch.zeros(4, 4)),
    ],
    ids=["size", "type", "strides"],
)
def test_the_pair_that_cannot_be_one_run_is_named(pair):
    fine = torch.zeros(2), torch.zeros(2)
    with pytest.raises(ConfigurationError, match="pair 1"):
        runs_of([fine[0], pair[0]], [fine[1], pair[1]])
