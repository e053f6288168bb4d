"""What is kept between runs: where it lies, and how a file is replaced without anyone reading half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """`$POOLRT_CACHE_DIR`, or ~/.cache/poolrt."""
    return Path(os.environ.get("POOLRT_CACHE_DIR") or Path.home() / ".cache" / "poolrt")


def write_whole(path: Path, text: str) -> None:
    """Put `text` into a file at once: who reads meanwhile finds the old text or the new one.

    Raises:
        OSError: if the file cannot be written; the old one is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
