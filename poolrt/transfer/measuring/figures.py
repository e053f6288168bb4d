"""What timed copies say about one way between two cards, as a line: seconds = latency + nbytes / bandwidth.

    seconds |                      . '        The intercept is the latency, the slope one over the bandwidth. At the
            |              . x '              half-bandwidth size the two parts are equal: a copy of that size gets
            |      . x '                      half of the bandwidth, smaller ones are all latency.
    latency +. x '
            |
            +-----------------------> nbytes

Pure: samples in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from poolrt.errors import ConfigurationError
from poolrt.topology.route import RouteKind

Direction = Literal["one way", "both ways"]
"""whether a copy had the way to itself, or another went back at the same time"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed copy."""

    route: RouteKind
    source: int
    target: int
    direction: Direction
    nbytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """The time of a copy as a function of its size."""

    latency_s: float
    """fixed cost of one copy"""
    bytes_per_s: float
    """what copies get that are so large that the fixed cost no longer counts"""

    @property
    def half_bandwidth_nbytes(self) -> float:
        """The size whose copies get half of the bandwidth (Hockney's n 1/2)."""
        return self.latency_s * self.bytes_per_s

    def copy_s(self, nbytes: float) -> float:
        """Seconds of one copy."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Point:
    """The typical copy of one size."""

    nbytes: int
    seconds: float
    """median over the repeats"""


@dataclass(frozen=True, kw_only=True)
class RouteFigures:
    """What was measured of one route between an ordered pair of cards."""

    route: RouteKind
    source: int
    target: int
    direction: Direction
    points: tuple[Point, ...]
    """one per size, smallest first"""
    line: Line

    @property
    def reached_bytes_per_s(self) -> float:
        """The most that copies of any one size got."""
        return max(point.nbytes / point.seconds for point in self.points)


def summarize(samples: Iterable[Sample]) -> tuple[RouteFigures, ...]:
    """One set of figures per route, pair and direction, in the order in which these first appear."""
    curves: dict[tuple[RouteKind, int, int, Direction], dict[int, list[float]]] = {}
    for sample in samples:
        sizes = curves.setdefault((sample.route, sample.source, sample.target, sample.direction), {})
        sizes.setdefault(sample.nbytes, []).append(sample.seconds)
    return tuple(
        figures_of(
            [Point(nbytes=nbytes, seconds=median(seconds)) for nbytes, seconds in sorted(sizes.items())],
            route=route,
            source=source,
            target=target,
            direction=direction,
        )
        for (route, source, target, direction), sizes in curves.items()
    )


def figures_of(
    points: Sequence[Point], *, route: RouteKind, source: int, target: int, direction: Direction
) -> RouteFigures:
    """The points of one route with the line through them."""
    return RouteFigures(
        route=route, source=source, target=target, direction=direction, points=tuple(points), line=fit_line(points)
    )


def fit_line(points: Sequence[Point]) -> Line:
    """The line that misses the points least, each weighed by its own time.

    Least squares over relative errors: the sum of ((latency + nbytes / bandwidth - seconds) / seconds)^2. So a copy of
    1 KiB says as much about the latency as one of 64 MiB about the bandwidth, although it is a thousand times shorter.
    Where the best line would start below zero it is the best one through zero. Of one size it is the one from zero
    through that point. Where time does not grow with size it is all latency, and the bandwidth, which is then higher
    than can be seen, that of the largest copy.

    Raises:
        ConfigurationError: if there is no point, or one has no bytes or took no time.
    """
    if not points or min(point.nbytes for point in points) <= 0 or min(point.seconds for point in points) <= 0:
        raise ConfigurationError(f"a line needs points of positive size and time, got {list(points)}")
    weights = [1 / point.seconds**2 for point in points]
    ones, sizes, squares, times, products = (
        sum(weight * value for weight, value in zip(weights, values, strict=True))
        for values in (
            [1.0] * len(points),
            [point.nbytes for point in points],
            [point.nbytes**2 for point in points],
            [point.seconds for point in points],
            [point.nbytes * point.seconds for point in points],
        )
    )
    largest = max(points, key=lambda point: point.nbytes)
    reached = largest.nbytes / largest.seconds
    if len({point.nbytes for point in points}) == 1:
        return Line(latency_s=0.0, bytes_per_s=reached)
    spread = ones * squares - sizes**2
    if spread <= 0:  # one point outweighs the others by more than a float can tell
        return Line(latency_s=0.0, bytes_per_s=reached)
    slope = (ones * products - sizes * times) / spread
    latency_s = (times - slope * sizes) / ones
    if slope <= 0:
        return Line(latency_s=times / ones, bytes_per_s=reached)
    if latency_s < 0:
        return Line(latency_s=0.0, bytes_per_s=squares / products)
    return Line(latency_s=latency_s, bytes_per_s=1 / slope)
