"""A picture of a topology: cards on a circle, links between them, wider where more bytes pass."""

from __future__ import annotations

import math
from pathlib import Path

from poolrt.errors import ConfigurationError
from poolrt.topology.topology import Link, Topology
from poolrt.units import format_nbytes

_COLOURS = {"NVLINK": "tab:green", "PCIE": "tab:blue", "HOST": "tab:gray"}
_STYLES = {"NVLINK": "-", "PCIE": "-", "HOST": ":"}


def save_picture(topology: Topology, path: str, title: str = "") -> None:
    """Draw the cards and links into a file, whose ending says the format.

    Raises:
        ConfigurationError: if matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("--plot needs matplotlib: pip install 'poolrt[plot]'") from error
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    axes = figure.add_subplot()
    places = _circle(len(topology))
    for link in topology.links:
        if link.source < link.target:
            (x0, y0), (x1, y1) = places[link.source], places[link.target]
            axes.plot([x0, x1], [y0, y1], color=_COLOURS[link.kind], linestyle=_STYLES[link.kind],
                      linewidth=_width(link), zorder=1)  # fmt: skip
            if len(topology) <= 4:
                axes.text((x0 + x1) / 2, (y0 + y1) / 2, _text(link), ha="center", va="center", fontsize=9,
                          bbox={"facecolor": "white", "edgecolor": "none"}, zorder=2)  # fmt: skip
    for card, (x, y) in zip(topology.cards, places, strict=True):
        size = format_nbytes(card.memory_bytes) if card.memory_bytes else ""
        axes.text(x, y, f"{card.index}\n{size}", ha="center", va="center", zorder=3,
                  bbox={"boxstyle": "round,pad=0.6", "facecolor": "white"})  # fmt: skip
    kinds = list(dict.fromkeys(link.kind for link in topology.links))
    for kind in kinds:
        axes.plot([], [], color=_COLOURS[kind], linestyle=_STYLES[kind], linewidth=3, label=kind)
    if kinds:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.08), ncols=len(kinds), frameon=False)
    axes.set(title=title, xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    axes.axis("off")
    _save(figure, path)


def _save(figure: object, path: str) -> None:
    try:
        figure.savefig(path, dpi=120)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot write a picture to {Path(path)}: {error}") from error


def _circle(cards: int) -> list[tuple[float, float]]:
    """Card 0 at the top, the others clockwise; two cards side by side."""
    turn = math.pi if cards == 2 else math.pi / 2
    angles = [turn - 2 * math.pi * card / cards for card in range(cards)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _width(link: Link) -> float:
    """Line width in points: grows with the logarithm of the bandwidth, from 1 at 4 GB/s."""
    return max(1.0, 1.5 * math.log2(link.bytes_per_s / 4e9))


def _text(link: Link) -> str:
    return f"{link.relation}\n{link.bytes_per_s / 1e9:.3g} GB/s"
