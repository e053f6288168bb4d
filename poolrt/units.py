"""Bytes and seconds as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal

from poolrt.errors import ConfigurationError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_BINARY = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")


def parse_nbytes(size: int | str) -> int:
    """The number of bytes in `size`: an int, or text such as "4GiB", "512 MiB", "80GB", "1.5g".

    Raises:
        ConfigurationError: if the text is no size, or the size is not positive.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise ConfigurationError(f"a size is a whole number of bytes or text such as '4GiB', not {size!r}")
    nbytes = size if isinstance(size, int) else _parse_text(size)
    if nbytes <= 0:
        raise ConfigurationError(f"a size must be positive, got {size!r}")
    return nbytes


def _parse_text(text: str) -> int:
    match = _SIZE.fullmatch(text)
    scale = match and {**_BINARY, **_DECIMAL}.get(match["unit"].lower())
    if not match or not scale:
        raise ConfigurationError(f"cannot read {text!r} as a size; write a number and KiB, MiB, GiB, TiB, MB or GB")
    return int(Decimal(match["number"]) * scale)


def format_nbytes(nbytes: float) -> str:
    """`nbytes` with a binary unit and three digits or so: 1.25 GiB, 640 MiB, 17 B."""
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{int(nbytes)} B"


def format_seconds(seconds: float) -> str:
    """`seconds` in the unit that reads best: 1.23 s, 45.6 ms, 7.8 us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"
