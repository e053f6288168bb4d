"""Numbers in the region's Python that must change with its pieces: heads, sizes to split by, groups.

Which are read is watched during one call. How they change is searched: a card's replica must give exactly what the
whole region gives with only that card's part of the row weight left. Candidates are the same fractions by which weights
were split, and their quotients (query heads per key-value head); few changes are tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from torch import nn

_BUILT_IN = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding, nn.ModuleList, nn.Sequential)
_MOST = 4000
"""settings that are tried"""

Fractions = tuple[Fraction, ...]
"""by card: what part of something it has"""


@dataclass(frozen=True)
class Attribute:
    """A whole number that a module or its config holds."""

    path: str
    in_config: bool
    name: str
    value: int

    def __str__(self) -> str:
        return f"{self.path}.{'config.' if self.in_config else ''}{self.name}".lstrip(".")


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Attribute]]:
    """The list that fills with the whole numbers that are read of the module and those in it, once each.

    While it is watched an object has a class of its own, derived from its class; that is taken back afterwards.
    """
    seen: dict[Attribute, None] = {}
    found: list[Attribute] = []
    changed: list[tuple[Any, type]] = []
    try:
        for path, inner in module.named_modules():
            if type(inner) in _BUILT_IN:
                continue
            for in_config, holder in ((False, inner), (True, inner.__dict__.get("config"))):
                if holder is not None and not any(holder is other for other, _ in changed):
                    _watch(holder, path, in_config, seen, changed)
        yield found
    finally:
        for holder, own in reversed(changed):
            holder.__class__ = own
        found += seen


def _watch(
    holder: Any, path: str, in_config: bool, seen: dict[Attribute, None], changed: list[tuple[Any, type]]
) -> None:
    own: Any = type(holder)

    def reading(self: Any, name: str) -> Any:
        value = own.__getattribute__(self, name)
        if type(value) is int:
            seen.setdefault(Attribute(path, in_config, name, value))
        return value

    watching = type(own.__name__, (own,), {"__getattribute__": reading})
    try:
        holder.__class__ = watching
    except TypeError:  # a class whose objects cannot change theirs: nothing of it can be changed either
        return
    changed.append((holder, own))


def settings(
    attributes: Sequence[Attribute], fractions: Sequence[Fractions], cards: int
) -> Iterator[dict[Attribute, tuple[int, ...]]]:
    """Ways to set the attributes on the cards, those that change fewest first; what stays is left out."""
    choices = [_choices(attribute, fractions, cards) for attribute in attributes]
    count = 1
    for options in choices:
        count *= len(options)
    # With very many ways, only such where all that change do so by a single rule or two.
    places = product(*(range(len(options)) for options in choices)) if count <= _MOST else _few_changes(choices)
    for places_ in sorted(places, key=lambda setting: sum(place > 0 for place in setting)):
        yield {
            attribute: options[place]
            for attribute, options, place in zip(attributes, choices, places_, strict=True)
            if place
        }


def _few_changes(choices: Sequence[Sequence[Any]]) -> Iterator[tuple[int, ...]]:
    """At most two attributes changed."""
    count = len(choices)
    yield (0,) * count
    for first in range(count):
        for second in range(first, count):
            for one in range(1, len(choices[first])):
                for two in range(1, len(choices[second])) if second > first else (one,):
                    setting = [0] * count
                    setting[first], setting[second] = one, two
                    yield tuple(setting)


def _choices(attribute: Attribute, fractions: Sequence[Fractions], cards: int) -> list[tuple[int, ...]]:
    """Values by card: as it is, times a fraction, times the quotient of two."""
    found = [(attribute.value,) * cards]
    quotients = [tuple(a / b for a, b in zip(x, y, strict=True)) for x in fractions for y in fractions if x != y]
    for fraction in (*fractions, *quotients):
        values = [attribute.value * part for part in fraction]
        if all(value.denominator == 1 and value >= 1 for value in values):
            whole = tuple(int(value) for value in values)
            if whole not in found:
                found.append(whole)
    return found


Try = Callable[[dict[Attribute, tuple[int, ...]]], str | None]
"""what keeps a setting from reproducing the region; None if nothing does"""


def search(attributes: Sequence[Attribute], fractions: Sequence[Fractions], cards: int, attempt: Try) -> Any:
    """The first setting that reproduces the region, or the sentence that says why none does."""
    tried, last = 0, ""
    attributes = [attribute for attribute in attributes if attribute.value > 1]
    for setting in settings(attributes, fractions, cards):
        tried += 1
        problem = attempt(setting)
        if problem is None:
            return setting
        last = problem
    names = ", ".join(map(str, attributes)) or "none"
    return f"no setting of the numbers its code reads ({names}) gives its parts; {tried} were tried; the last: {last}"
