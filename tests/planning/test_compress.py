import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.planning.compress import compress_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["head"], ["head"]),
        (["layer.0", "layer.1", "layer.2"], ["layer.0-2"]),
        (["embeddings", "layer.9", "layer.10", "head"], ["embeddings", "layer.9-10", "head"]),
        (["layer.0", "layer.2"], ["layer.0", "layer.2"]),
        (["layer.1", "layer.0"], ["layer.1", "layer.0"]),
        (["encoder.0.mlp", "encoder.1.mlp", "decoder.2.mlp"], ["encoder.0-1.mlp", "decoder.2.mlp"]),
        (["a.0.0", "a.0.1", "a.1.1"], ["a.0.0-1", "a.1.1"]),
        (["0", "1", "2"], ["0-2"]),
    ],
)
def test_names_that_count_up_in_one_place_are_joined(names, short):
    assert compress_names(names) == short


@given(st.lists(st.text("ab.01", min_size=1, max_size=5)))
def test_the_first_and_the_last_name_can_be_read_back(names):
    short = compress_names(names)
    assert len(short) <= len(names)
    if names:
        assert re.sub(r"(\d+)-\d+", r"\1", short[0]) == names[0]
        assert re.sub(r"\d+-(\d+)", r"\1", short[-1]) == names[-1]
