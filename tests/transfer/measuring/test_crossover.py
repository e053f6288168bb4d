import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.measuring.crossover import crossing_nbytes, fastest_by_size
from poolrt.transfer.measuring.figures import Line
from poolrt.transfer.routes import PairChoice

lines = st.builds(
    Line,
    latency_s=st.floats(0, 1e-3),
    bytes_per_s=st.floats(math.log(1e8), math.log(1e12)).map(math.exp),
)
sizes = st.floats(0, math.log(1 << 36)).map(lambda power: round(math.exp(power)))


@given(st.dictionaries(st.sampled_from(["P2P", "HOST", "LOCAL"]), lines, min_size=1), sizes)
def test_no_other_route_is_faster_at_any_size(routes, nbytes):
    choice = fastest_by_size(routes)
    chosen = routes[PairChoice(kind_by_size=choice).at(nbytes)].copy_s(nbytes)
    assert chosen <= min(line.copy_s(nbytes) for line in routes.values()) * (1 + 1e-9) + 1e-9 / 1e8
    starts = [from_nbytes for from_nbytes, _ in choice]
    assert starts[0] == 0
    assert starts == sorted(set(starts))


@given(lines, st.floats(1.001, 100), st.floats(1.001, 100))
def test_a_pair_that_is_slower_than_the_host_is_never_chosen(host, later, slower):
    peer = Line(latency_s=host.latency_s * later + 1e-9, bytes_per_s=host.bytes_per_s / slower)
    assert fastest_by_size({"P2P": peer, "HOST": host}) == ((0, "HOST"),)


def test_short_copies_by_one_route_and_long_ones_by_the_other():
    """
    seconds |  HOST  . '        . - '
            |      . '  . - '
            | .  +  '
            |- '  ^ 11 000 bytes
            +-----------------> nbytes
    """
    peer, host = Line(latency_s=10e-6, bytes_per_s=1e9), Line(latency_s=20e-6, bytes_per_s=11e9)
    assert crossing_nbytes(peer, host) == pytest.approx(11_000)
    assert crossing_nbytes(host, peer) is None
    choice = fastest_by_size({"HOST": host, "P2P": peer})
    assert [kind for _, kind in choice] == ["P2P", "HOST"]
    assert choice[1][0] == pytest.approx(11_000, abs=1)
    assert PairChoice(kind_by_size=choice).at(10_000) == "P2P"
    assert PairChoice(kind_by_size=choice).at(12_000) == "HOST"


def test_equal_lines_have_one_choice_and_the_first_named_wins():
    line = Line(latency_s=1e-6, bytes_per_s=1e9)
    assert fastest_by_size({"P2P": line, "HOST": line}) == ((0, "P2P"),)


def test_three_routes_meet_two_times():
    choice = fastest_by_size(
        {
            "LOCAL": Line(latency_s=1e-6, bytes_per_s=1e9),
            "P2P": Line(latency_s=2e-6, bytes_per_s=10e9),
            "HOST": Line(latency_s=9e-6, bytes_per_s=100e9),
        }
    )
    assert [kind for _, kind in choice] == ["LOCAL", "P2P", "HOST"]


def test_no_route_is_an_error():
    with pytest.raises(ConfigurationError):
        fastest_by_size({})
