"""The files of the running system."""

from __future__ import annotations

import os
from pathlib import Path


class SystemFiles:
    """A FileSource over a folder that is taken as the root of a system."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str | None:
        """The content of a small file, without the line break at its end; None if it cannot be read."""
        data = self.data(path)
        return None if data is None else data.decode(errors="replace").rstrip("\n")

    def data(self, path: str) -> bytes | None:
        """The content of a small file; None if it cannot be read."""
        try:
            return self._at(path).read_bytes()
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted; nothing if it cannot be read."""
        try:
            return sorted(os.listdir(self._at(path)))
        except OSError:
            return []

    def real(self, path: str) -> str | None:
        """The path without symbolic links, seen from the root; None if it leads nowhere."""
        try:
            return "/" + str(self._at(path).resolve(strict=True).relative_to(self._root.resolve()))
        except (OSError, ValueError):
            return None

    def room(self, path: str) -> int | None:
        """Bytes of the file system that a folder is on, used or not; None if there is no such folder."""
        try:
            found = os.statvfs(self._at(path))
        except OSError:
            return None
        return found.f_blocks * found.f_frsize

    def kernel_log(self) -> str | None:
        """The kernel's messages from /dev/kmsg; None without the right to read them."""
        try:
            descriptor = os.open(self._at("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        records = []
        try:
            while record := os.read(descriptor, 8192):  # one record per call; BlockingIOError after the last
                records.append(record)
        except OSError:
            pass
        finally:
            os.close(descriptor)
        return b"".join(records).decode(errors="replace")

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")
