import math
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.measuring.figures import Line, Point, Sample, fit_line, summarize

SIZES = tuple(1 << shift for shift in range(10, 28, 2))  # 1 KiB to 64 MiB
REPEATS = 5

latencies = st.floats(math.log(1e-6), math.log(1e-3)).map(math.exp)
rates = st.floats(math.log(1e8), math.log(1e12)).map(math.exp)


def samples(line, noise, outliers=(), route="P2P", direction="one way"):
    """One per size and repeat; `noise` gives a factor per sample, the outliers took ten times as long."""
    factors = iter(noise)
    return [
        Sample(
            route=route,
            source=0,
            target=1,
            direction=direction,
            nbytes=nbytes,
            seconds=line.copy_s(nbytes) * next(factors) * (10 if (size, repeat) in outliers else 1),
        )
        for size, nbytes in enumerate(SIZES)
        for repeat in range(REPEATS)
    ]


@settings(max_examples=150)
@given(
    latencies,
    rates,
    st.lists(st.floats(0.97, 1.03), min_size=len(SIZES) * REPEATS, max_size=len(SIZES) * REPEATS),
    st.lists(st.integers(0, len(SIZES) - 1), max_size=6),
)
def test_latency_and_bandwidth_are_found_again_under_noise(latency_s, bytes_per_s, noise, slow_sizes):
    true = Line(latency_s=latency_s, bytes_per_s=bytes_per_s)
    outliers = {(size, repeat) for size in slow_sizes for repeat in range(2)}  # at most two of five
    (found,) = summarize(samples(true, noise, outliers))
    for nbytes in SIZES:
        assert found.line.copy_s(nbytes) == pytest.approx(true.copy_s(nbytes), rel=0.12)
    if latency_s > SIZES[2] / bytes_per_s:  # copies of up to 16 KiB are mostly latency
        assert found.line.latency_s == pytest.approx(latency_s, rel=0.15)
    if latency_s < SIZES[-3] / bytes_per_s:  # copies from 4 MiB on are mostly bandwidth
        assert found.line.bytes_per_s == pytest.approx(bytes_per_s, rel=0.15)
        assert found.reached_bytes_per_s <= bytes_per_s / 0.97


def test_without_noise_the_line_is_exact():
    true = Line(latency_s=7e-6, bytes_per_s=50.9e9)
    found = fit_line([Point(nbytes=nbytes, seconds=true.copy_s(nbytes)) for nbytes in SIZES])
    assert found.latency_s == pytest.approx(7e-6, rel=1e-9)
    assert found.bytes_per_s == pytest.approx(50.9e9, rel=1e-9)
    assert found.half_bandwidth_nbytes == pytest.approx(7e-6 * 50.9e9, rel=1e-9)
    assert found.copy_s(found.half_bandwidth_nbytes) == pytest.approx(2 * 7e-6, rel=1e-9)


def test_the_median_of_each_size_counts():
    seconds = [3.0, 1.0, 2.0, 50.0, 1.5]
    (found,) = summarize(
        [Sample(route="HOST", source=1, target=0, direction="one way", nbytes=8, seconds=x) for x in seconds]
    )
    assert (found.route, found.source, found.target) == ("HOST", 1, 0)
    assert [(point.nbytes, point.seconds) for point in found.points] == [(8, median(seconds))]


def test_routes_pairs_and_directions_are_kept_apart():
    true = Line(latency_s=1e-5, bytes_per_s=1e9)
    still = [1.0] * (len(SIZES) * REPEATS)
    mixed = [
        *samples(true, still),
        *samples(true, still, route="HOST"),
        *samples(true, still, direction="both ways"),
        Sample(route="P2P", source=1, target=0, direction="one way", nbytes=8, seconds=1.0),
    ]
    found = summarize(reversed(mixed))
    assert {(x.route, x.source, x.direction) for x in found} == {
        ("P2P", 0, "one way"),
        ("HOST", 0, "one way"),
        ("P2P", 0, "both ways"),
        ("P2P", 1, "one way"),
    }
    assert all(list(x.points) == sorted(x.points, key=lambda point: point.nbytes) for x in found)


def test_a_line_never_starts_below_zero():
    line = fit_line([Point(nbytes=100, seconds=1.0), Point(nbytes=200, seconds=3.0)])
    assert line.latency_s == 0
    # the best line through zero: relative errors 100 s - 1 and (200 s - 3) / 3 are smallest together here
    slope = (100 / 1 + 200 / 3) / (100**2 / 1 + 200**2 / 9)
    assert line.bytes_per_s == pytest.approx(1 / slope)


def test_one_size_tells_a_rate_and_no_latency():
    assert fit_line([Point(nbytes=8, seconds=2.0)]) == Line(latency_s=0.0, bytes_per_s=4.0)


@pytest.mark.parametrize("seconds", [(2.0, 2.0), (2.0, 2.0, 1.9)], ids=["flat", "falling"])
def test_where_time_does_not_grow_it_is_all_latency(seconds):
    line = fit_line([Point(nbytes=8 * (at + 1), seconds=x) for at, x in enumerate(seconds)])
    assert min(seconds) <= line.latency_s <= max(seconds)
    assert line.bytes_per_s == 8 * len(seconds) / seconds[-1]


@pytest.mark.parametrize("points", [[], [Point(nbytes=0, seconds=1.0)], [Point(nbytes=8, seconds=0.0)]])
def test_no_line_through_nothing(points):
    with pytest.raises(ConfigurationError):
        fit_line(points)


def test_a_point_that_outweighs_all_others_is_the_line():
    points = [Point(nbytes=8, seconds=1e-7), Point(nbytes=9, seconds=10.0)]
    line = fit_line(points)
    assert line.bytes_per_s > 0
    assert line.latency_s >= 0
