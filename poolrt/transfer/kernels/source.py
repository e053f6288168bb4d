"""The text of the CUDA kernels: inside an installed package, or beside the package in a checkout."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from poolrt.errors import BuildError

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@cache
def kernel_source() -> str:
    """csrc/kernels.cu as one text: what it includes is put in, so that a compiler needs no folder.

    cupy keeps what it compiles under a key made from the text; an included file would not be part of that.

    Raises:
        BuildError: if the file is not there.
    """
    folder = _folder()
    text = (folder / "kernels.cu").read_text()
    return _INCLUDE.sub(lambda found: (folder / found[1]).read_text(), text)


def _folder() -> Path:
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "csrc", package.parent / "csrc"):
        if (candidate / "kernels.cu").is_file():
            return candidate
    raise BuildError(f"the sources of the copy kernels are not beside {package}; reinstall poolrt")
