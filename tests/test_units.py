import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.units import GIB, KIB, MIB, TIB, format_nbytes, format_seconds, parse_nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (4096, 4096),
        ("4GiB", 4 * GIB),
        ("512 MiB", 512 * MIB),
        (" 80GB ", 80 * 10**9),
        ("1.5g", GIB + GIB // 2),
        ("2k", 2 * KIB),
        ("3t", 3 * TIB),
        ("17", 17),
        ("17 B", 17),
        ("1e", None),
    ],
)
def test_sizes_as_people_write_them(text: str | int, nbytes: int | None) -> None:
    if nbytes is None:
        with pytest.raises(ConfigurationError):
            parse_nbytes(text)
    else:
        assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("size", ["4 apples", "", "GiB", "-1GiB", "1,5 GiB", "0", "0.1 B", 0, -1, True, None, 1.5])
def test_what_is_no_size_is_refused_with_its_own_words(size: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_nbytes(size)
    assert repr(size) in str(caught.value)


@given(st.integers(min_value=1, max_value=1 << 60))
def test_a_number_of_bytes_is_itself(nbytes: int) -> None:
    assert parse_nbytes(nbytes) == parse_nbytes(str(nbytes)) == nbytes


@given(st.integers(min_value=1, max_value=1 << 50))
def test_what_is_printed_can_be_read_again(nbytes: int) -> None:
    assert parse_nbytes(format_nbytes(nbytes)) == pytest.approx(nbytes, rel=1e-3)


def test_bytes_as_people_read_them() -> None:
    assert [format_nbytes(n) for n in (0, 17, 1536, 640 * MIB, 1.25 * GIB, 2 * TIB, -2048)] == [
        "0 B",
        "17 B",
        "1.5 KiB",
        "640 MiB",
        "1.25 GiB",
        "2 TiB",
        "-2 KiB",
    ]


def test_seconds_as_people_read_them() -> None:
    assert [format_seconds(s) for s in (1.234, 0.0456, 7.8e-6, 0.0)] == ["1.23 s", "45.6 ms", "7.8 us", "0 s"]
