"""Types known by name are torch's types."""

from itertools import product

import pytest
import torch

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.dtypes import ITEM_NBYTES, NAMES, common_type
from poolrt.transfer.kernels.numba_numbers import storage_dtype


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name):
    assert ITEM_NBYTES[name] == getattr(torch, name).itemsize == storage_dtype(name).itemsize


def test_sums_are_computed_in_torchs_type_and_refused_where_torch_does():
    for target, source in product(NAMES, NAMES):
        tensors = [torch.ones(2, dtype=getattr(torch, name)) for name in (target, source)]
        expected = torch.result_type(*tensors)
        if torch.can_cast(expected, tensors[0].dtype):
            assert getattr(torch, common_type(target, source)) == expected, (target, source)
        else:
            with pytest.raises(ConfigurationError):
                common_type(target, source)


def test_other_types_are_named():
    with pytest.raises(ConfigurationError, match="float8_e4m3fn"):
        common_type("float8_e4m3fn", "float32")
