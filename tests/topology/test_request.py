import pytest

from poolrt.errors import ConfigurationError
from poolrt.topology.request import CudaRequest, LogicalRequest, VirtualRequest, parse_cards

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("virtual:2x4GiB", VirtualRequest(memory_bytes=(4 * GIB,) * 2)),
        ("virtual:4GiB,8GiB", VirtualRequest(memory_bytes=(4 * GIB, 8 * GIB))),
        ("virtual:512MiB", VirtualRequest(memory_bytes=(GIB // 2,))),
        (" virtual:16x1GiB ", VirtualRequest(memory_bytes=(GIB,) * 16)),
        ("cuda:0,1", CudaRequest(indices=(0, 1))),
        ("cuda:3", CudaRequest(indices=(3,))),
        ("cuda:1, 0", CudaRequest(indices=(1, 0))),
        ("logical:cuda:0:2x8GiB", LogicalRequest(device="cuda:0", memory_bytes=(8 * GIB,) * 2)),
        ("logical:cuda:1:8GiB,4GiB", LogicalRequest(device="cuda:1", memory_bytes=(8 * GIB, 4 * GIB))),
    ],
)
def test_each_form_is_read(text, request_):
    assert parse_cards(text) == request_


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4 apples",
        "virtual",
        "virtual:",
        "virtual:4 apples",
        "virtual:0x4GiB",
        "virtual:17x4GiB",
        "virtual:" + ",".join(["1GiB"] * 17),
        "virtual:2x0GiB",
        "virtual:2x4GiB,8GiB",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:0,0",
        "logical:cuda:0",
        "logical:2x8GiB",
        "logical:cuda:0:0x8GiB",
        "rocm:0",
    ],
)
def test_anything_else_is_refused_with_the_text_and_the_forms(text):
    with pytest.raises(ConfigurationError) as refused:
        parse_cards(text)
    assert repr(text) in str(refused.value)
