"""Dotted names of what lies inside a module, or inside any nested value."""

from __future__ import annotations

from typing import Any


def joined(path: str, name: Any) -> str:
    """The name, from the root, of what is called `name` inside `path`; the root's own path is empty."""
    return f"{path}.{name}" if path else str(name)


def contains(outer: str, inner: str) -> bool:
    """Whether the module `inner` is `outer` or in it, by name."""
    return not outer or inner == outer or inner.startswith(f"{outer}.")
