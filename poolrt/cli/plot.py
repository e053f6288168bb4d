"""A picture of a topology: cards on a circle, links between them, wider where more bytes pass."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from poolrt.errors import ConfigurationError
from poolrt.topology.topology import Link, Topology
from poolrt.units import format_nbytes

_COLOURS = {"NVLINK": "tab:green", "PCIE": "tab:blue", "HOST": "tab:gray"}
_STYLES = {"NVLINK": "-", "PCIE": "-", "HOST": ":"}
_MOST_LABELLED = 4
"""cards up to which every link has its figures written on it"""


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
            _draw_link(axes, link, places[link.source], places[link.target], labelled=len(topology) <= _MOST_LABELLED)
    for card, place in zip(topology.cards, places, strict=True):
        size = format_nbytes(card.memory_bytes) if card.memory_bytes else ""
        frame = {"boxstyle": "round,pad=0.6", "facecolor": "white"}
        axes.text(*place, f"{card.index}\n{size}", ha="center", va="center", zorder=3, bbox=frame)
    kinds = list(dict.fromkeys(link.kind for link in topology.links))
    for kind in kinds:
        axes.plot([], [], color=_COLOURS[kind], linestyle=_STYLES[kind], linewidth=3, label=kind)
    if kinds:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.08), ncols=len(kinds), frameon=False)
    axes.set(title=textwrap.fill(title, 70), xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    axes.axis("off")
    _save(figure, path)


def _draw_link(axes: Any, link: Link, start: tuple[float, float], end: tuple[float, float], *, labelled: bool) -> None:
    (x0, y0), (x1, y1) = start, end
    style = {"color": _COLOURS[link.kind], "linestyle": _STYLES[link.kind], "linewidth": _width(link)}
    axes.plot([x0, x1], [y0, y1], zorder=1, **style)
    if labelled:  # off the middle, where the diagonals of four cards would meet
        x, y = 0.64 * x0 + 0.36 * x1, 0.64 * y0 + 0.36 * y1
        frame = {"facecolor": "white", "edgecolor": "none"}
        text = f"{link.relation}\n{link.bytes_per_s / 1e9:.3g} GB/s"
        axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=frame, zorder=2)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=120)
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
